"""Scale finder: computes the quantizer's scale from a vector's magnitudes, and its multiples."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.fixed_point import triple
from rtl.layouts import ABSMEAN_CONSTANT_BITS

__all__ = ["ScaleFinder", "weight_bits"]

_ABSMEAN_FRACTION_BITS = 8  # of an absmean constant


def weight_bits(config: EngineConfig) -> int:
    """Return the width of a weight ``3**c * scale``, which is clamped to its largest number.

    At that number every digit is zero: a digit is nonzero only if ``weight < 2 |x|``, and
    ``|x| <= 2**(requantized_bits - 1)``.
    """
    return config.requantized_bits + 1


class ScaleFinder(wiring.Component):
    """Compute step 4 of docs/contract.md ("Quantizer"), and the digits' weights ``3**c * scale``.

    A part of the quantizer. The number to encode is a serial product of the sum of magnitudes and a
    constant, or the largest magnitude. The number is shifted until its top bit is one; the bits
    behind the top bit are rounded to the fraction. The scale is shifted to its place and tripled
    for each further digit. Shifts go by four places per cycle and then by one, so that there is no
    barrel shifter.

    Attributes
    ----------
    start : In, begin; the next four inputs are stable from here to `done`
    total, largest : In, sum of magnitudes, largest magnitude
    absmean, constant : In, scale from `total` and this constant, or from `largest`
    top : In, the most significant digit
    done : Out, idle; the outputs below are valid and stable until `start`
    fraction, exponent : Out, the encoded scale
    weights : Out, ``3**c * scale`` for c = 0..top, see `weight_bits`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        magnitude_bits = config.requantized_bits - 1
        self._total_bits = (config.head_dim * ((1 << magnitude_bits) - 1)).bit_length()
        self._number_bits = self._total_bits + ABSMEAN_CONSTANT_BITS
        super().__init__(
            {
                "start": In(1),
                "total": In(self._total_bits),
                "largest": In(magnitude_bits),
                "absmean": In(1),
                "constant": In(ABSMEAN_CONSTANT_BITS),
                "top": In(range(config.max_planes)),
                "done": Out(1),
                "fraction": Out(config.scale_fraction_bits),
                "exponent": Out(config.scale_exponent_bits),
                "weights": Out(data.ArrayLayout(weight_bits(config), config.max_planes)),
            }
        )

    def latency(self, planes: int) -> int:
        """Return the most cycles from `start` to `done` for runs of `planes` planes.

        The serial product, shifting to normalize, rounding, shifting to the exponent, tripling for
        each digit but one; four more to start and to see the ends of shifts and tripling.
        """
        places = _shift_cycles(self._number_bits - 1)
        shift = _shift_cycles((1 << self._config.scale_exponent_bits) - 1)
        return ABSMEAN_CONSTANT_BITS + places + 1 + shift + (planes - 1) + 4

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        number = Signal(self._number_bits, reset_less=True)
        constant = Signal(ABSMEAN_CONSTANT_BITS, reset_less=True)
        step = Signal(range(max(ABSMEAN_CONSTANT_BITS, 1 << config.scale_exponent_bits)))
        # weight of the number's top bit: 2**place
        place = Signal(signed(len(number).bit_length() + 1), reset_less=True)
        top_place = len(number) - 1
        mean_shift = (config.head_dim - 1).bit_length() + _ABSMEAN_FRACTION_BITS
        weights = Array(self.weights[c] for c in range(config.max_planes))
        unit = self.weights[0]
        clamp = (1 << len(unit)) - 1
        digit = Signal(range(config.max_planes))

        with m.FSM():
            with m.State("DONE"):
                m.d.comb += self.done.eq(~self.start)
                m.d.sync += [
                    number.eq(Mux(self.absmean, 0, self.largest)),
                    constant.eq(self.constant),
                    step.eq(ABSMEAN_CONSTANT_BITS - 1),
                    place.eq(Mux(self.absmean, top_place - mean_shift, top_place)),
                ]
                with m.If(self.start):
                    m.next = "NORMALIZE"
                    with m.If(self.absmean):
                        m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += [
                    number.eq((number << 1) + Mux(constant[-1], self.total, 0)),
                    constant.eq(constant << 1),
                    step.eq(step - 1),
                ]
                with m.If(step == 0):
                    m.next = "NORMALIZE"
            with m.State("NORMALIZE"):
                with m.If((number == 0) | number[-1]):
                    m.next = "ROUND"
                with m.Elif(~number[-4:].any()):
                    m.d.sync += [number.eq(number << 4), place.eq(place - 4)]
                with m.Else():
                    m.d.sync += [number.eq(number << 1), place.eq(place - 1)]
            with m.State("ROUND"):
                keep = config.scale_fraction_bits + 1
                mantissa = Signal(keep + 1)
                encoded = Signal(signed(len(place) + 2))
                m.d.comb += [
                    mantissa.eq(number[-keep:] + number[-keep - 1]),
                    encoded.eq(place - config.scale_fraction_bits + mantissa[-1]),
                ]
                largest_exponent = (1 << config.scale_exponent_bits) - 1
                f, e = Signal.like(self.fraction), Signal.like(self.exponent)
                with m.If((number == 0) | (encoded < 0)):
                    m.d.comb += [f.eq(0), e.eq(0)]
                with m.Elif(encoded > largest_exponent):
                    m.d.comb += [f.eq(-1), e.eq(largest_exponent)]
                with m.Else():
                    m.d.comb += [f.eq(mantissa), e.eq(encoded)]
                # a carry out of the mantissa leaves zeros in the fraction: 2**(M+1) is 2**M twice
                m.d.sync += [
                    self.fraction.eq(f),
                    self.exponent.eq(e),
                    unit.eq(Cat(f, 1)),
                    step.eq(e),
                ]
                m.next = "SHIFT"
            with m.State("SHIFT"):
                m.d.sync += digit.eq(0)
                with m.If(step == 0):
                    m.next = "TRIPLE"
                with m.Elif(step >= 4):
                    m.d.sync += unit.eq(Mux(unit[-4:].any(), clamp, unit << 4))
                    m.d.sync += step.eq(step - 4)
                with m.Else():
                    m.d.sync += unit.eq(Mux(unit[-1], clamp, unit << 1))
                    m.d.sync += step.eq(step - 1)
            with m.State("TRIPLE"):
                weight = Signal.like(unit)
                m.d.comb += weight.eq(weights[digit])
                with m.If(digit == self.top):
                    m.next = "DONE"
                with m.Else():
                    for c in range(1, config.max_planes):
                        with m.If(digit == c - 1):
                            tripled = Mux(weight[-2:].any(), clamp, triple(weight))
                            m.d.sync += weights[c].eq(tripled)
                    m.d.sync += digit.eq(digit + 1)
        return m


def _shift_cycles(most: int) -> int:
    """Return the most cycles of a shift by up to `most` places, four and then one at a time."""
    return max(n // 4 + n % 4 for n in range(most + 1))
