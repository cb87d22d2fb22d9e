"""Quantizer: a vector to ternary planes and scales, by comparing and subtracting."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.config import EngineConfig
from rtl.fixed_point import triple
from rtl.layouts import (
    ABSMEAN_CONSTANT_BITS,
    Trit,
    coded_plane_layout,
    conditioned_layout,
    vector_code_layout,
)

__all__ = ["Quantizer"]

_ABSMEAN_FRACTION_BITS = 8  # of an absmean constant


class Quantizer(wiring.Component):
    """Digits and scales of docs/contract.md ("Quantizer"), one element and one digit a cycle.

    D elements are shifted in while their magnitudes are summed and compared. The scale comes from
    that by a serial multiply, a normalizing shift and a rounding. Then each element meets the
    digits' weights from the most significant down: a comparison with both signs and a subtraction,
    no divider and no multiplier. A balanced code is one run of all planes; a residual code repeats
    everything but the loading with runs of one plane, on what is left.

    One vector at a time. A balanced one of N planes takes D cycles to load, N D for its digits, N
    to send, and up to `scale_latency` between; a residual one N times D, 1 and `scale_latency`.

    Attributes
    ----------
    code : In, `vector_code_layout`; stable from a vector's first element to its last plane
    i : stream In, `conditioned_layout`, D elements a vector
    o : stream Out, `coded_plane_layout`, the most significant plane of a run first
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "code": In(vector_code_layout(config)),
                "i": In(stream.Signature(conditioned_layout(config))),
                "o": Out(stream.Signature(coded_plane_layout(config))),
            }
        )

    @property
    def scale_latency(self) -> int:
        """Most cycles between the last element in and the first digit."""
        multiply = ABSMEAN_CONSTANT_BITS
        # each place that a number is normalized by is one that its scale is not shifted by
        normalize = self._number_bits
        return 1 + multiply + normalize + 2 + (self._config.max_planes - 1) + 1

    @property
    def _number_bits(self) -> int:
        """Width of what a scale is encoded from: a sum of magnitudes times a constant."""
        largest = self._config.head_dim * self._config.conditioned_max
        return largest.bit_length() + ABSMEAN_CONSTANT_BITS

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, code = self._config, self.code
        dim, planes = config.head_dim, config.max_planes
        index = Signal(range(dim))
        run = Signal(range(planes))
        digit = Signal(range(planes))
        top_digit = Signal(range(planes))
        m.d.comb += top_digit.eq(Mux(code.residual, 0, code.planes - 1))

        # --- elements: a ring whose head meets the digits ---------------------------------------
        ring = [
            Signal(signed(config.conditioned_bits), name=f"element_{d}", reset_less=True)
            for d in range(dim)
        ]
        turn = Signal()  # the ring moves one place
        entering = Signal(signed(config.conditioned_bits))
        magnitude = Signal(range(config.conditioned_max + 1))
        total = Signal(range(dim * config.conditioned_max + 1), reset_less=True)
        largest = Signal(range(config.conditioned_max + 1), reset_less=True)
        m.d.comb += magnitude.eq(Mux(entering < 0, -entering, entering))
        with m.If(turn):
            first = index == 0
            m.d.sync += [
                *(a.eq(b) for a, b in zip(ring, [*ring[1:], entering], strict=True)),
                index.eq(Mux(index == dim - 1, 0, index + 1)),
                total.eq(Mux(first, 0, total) + magnitude),
                largest.eq(Mux(~first & (largest > magnitude), largest, magnitude)),
            ]

        # --- scale: encoded from `number`, whose top bit has the weight 2**place -----------------
        constants = Array(code.constants[c] for c in range(planes))
        number = Signal(self._number_bits, reset_less=True)
        constant_bits = Signal(ABSMEAN_CONSTANT_BITS, reset_less=True)
        step = Signal(range(max(ABSMEAN_CONSTANT_BITS, 1 << config.scale_exponent_bits)))
        place = Signal(signed(len(number).bit_length() + 1), reset_less=True)
        top_place = len(number) - 1
        mean_shift = (dim - 1).bit_length() + _ABSMEAN_FRACTION_BITS
        fraction = Signal(config.scale_fraction_bits, reset_less=True)
        exponent = Signal(config.scale_exponent_bits, reset_less=True)

        # --- weights: 3**c times the scale, clamped where every digit is zero anyway -------------
        weight_bits = config.conditioned_bits + 2
        clamp = (1 << weight_bits) - 1
        weights = Array(
            Signal(weight_bits, name=f"weight_{c}", reset_less=True) for c in range(planes)
        )

        # --- digits -----------------------------------------------------------------------------
        head = ring[0]
        weight = Signal(weight_bits)
        trit = Signal(Trit)
        rest = Signal(signed(config.conditioned_bits))
        rows = Array(Signal(2 * dim, name=f"plane_{c}", reset_less=True) for c in range(planes))
        m.d.comb += [
            weight.eq(weights[digit]),
            trit.negative.eq((head << 1) < -weight),
            trit.nonzero.eq(trit.negative | ((head << 1) > weight)),
            rest.eq(head - Mux(trit.nonzero, Mux(trit.negative, -weight, weight), 0)),
        ]

        last_run = ~code.residual | (run == code.planes - 1)
        unit = digit == 0
        m.d.comb += [
            self.o.payload.trits.eq(rows[digit]),
            self.o.payload.fraction.eq(Mux(unit, fraction, 0)),
            self.o.payload.exponent.eq(Mux(unit, exponent, 0)),
            self.o.payload.unit.eq(unit),
            self.o.payload.last.eq(unit & last_run),
        ]

        with m.FSM():
            with m.State("LOAD"):
                m.d.comb += [
                    self.i.ready.eq(1),
                    entering.eq(self.i.payload.value),
                    turn.eq(self.i.valid),
                ]
                m.d.sync += run.eq(0)
                with m.If(turn & (index == dim - 1)):
                    m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += [
                    number.eq(Mux(code.absmean, 0, largest)),
                    constant_bits.eq(constants[run]),
                    step.eq(ABSMEAN_CONSTANT_BITS - 1),
                    place.eq(Mux(code.absmean, top_place - mean_shift, top_place)),
                ]
                m.next = "NORMALIZE"
                with m.If(code.absmean):
                    m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += [
                    number.eq((number << 1) + Mux(constant_bits[-1], total, 0)),
                    constant_bits.eq(constant_bits << 1),
                    step.eq(step - 1),
                ]
                with m.If(step == 0):
                    m.next = "NORMALIZE"
            with m.State("NORMALIZE"):
                m.d.sync += [number.eq(number << 1), place.eq(place - 1)]
                with m.If((number == 0) | number[-1]):
                    m.d.sync += [number.eq(number), place.eq(place)]
                    m.next = "ROUND"
            with m.State("ROUND"):
                keep = config.scale_fraction_bits + 1
                mantissa = Signal(keep + 1)
                encoded = Signal(signed(len(place) + 2))
                m.d.comb += [
                    mantissa.eq(number[-keep:] + number[-keep - 1]),
                    encoded.eq(place - config.scale_fraction_bits + mantissa[-1]),
                ]
                largest_exponent = (1 << config.scale_exponent_bits) - 1
                f, e = Signal.like(fraction), Signal.like(exponent)
                with m.If((number == 0) | (encoded < 0)):
                    m.d.comb += [f.eq(0), e.eq(0)]
                with m.Elif(encoded > largest_exponent):
                    m.d.comb += [f.eq(-1), e.eq(largest_exponent)]
                with m.Else():
                    m.d.comb += [f.eq(mantissa), e.eq(encoded)]
                # a carry out of the mantissa leaves zeros in the fraction: 2**(M+1) is 2**M twice
                m.d.sync += [
                    fraction.eq(f),
                    exponent.eq(e),
                    weights[0].eq(Cat(f, 1)),
                    step.eq(e),
                ]
                m.next = "SHIFT"
            with m.State("SHIFT"):
                with m.If(step != 0):
                    doubled = Mux(weights[0][-1], clamp, weights[0] << 1)
                    m.d.sync += [weights[0].eq(doubled), step.eq(step - 1)]
                with m.Else():
                    m.d.sync += digit.eq(0)
                    m.next = "TRIPLE"
            with m.State("TRIPLE"):
                tripled = Mux(weight[-2:].any(), clamp, triple(weight))
                for c in range(1, planes):
                    with m.If(digit == c - 1):
                        m.d.sync += weights[c].eq(tripled)
                m.d.sync += digit.eq(digit + 1)
                with m.If(digit >= planes - 2):
                    m.d.sync += digit.eq(top_digit)
                    m.next = "DIGITS"
            with m.State("DIGITS"):
                m.d.comb += entering.eq(rest)
                m.d.sync += rows[digit].eq(Cat(rows[digit][2:], trit))
                with m.If(digit == 0):
                    m.d.comb += turn.eq(1)
                    m.d.sync += digit.eq(top_digit)
                    with m.If(index == dim - 1):
                        m.next = "SEND"
                with m.Else():
                    m.d.sync += [head.eq(rest), digit.eq(digit - 1)]
            with m.State("SEND"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.d.sync += digit.eq(digit - 1)
                    with m.If(unit):
                        m.d.sync += [digit.eq(0), run.eq(run + 1)]
                        m.next = "CHOOSE"
                        with m.If(last_run):
                            m.next = "LOAD"
        return m
