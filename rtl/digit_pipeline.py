"""Digit pipeline: finds the balanced ternary digits of one element after the other."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.elements import Trit
from rtl.fixed_point import add_selected
from rtl.scale_finder import weight_bits

__all__ = ["DigitPipeline"]


class DigitPipeline(wiring.Component):
    """Compute step 5 of docs/contract.md ("Quantizer"): a stage per digit, one element per cycle.

    A part of the quantizer. A stage is a comparator and an adder: it compares twice the magnitude
    of the remainder with the digit's weight, and subtracts the digit times its weight. The last
    remainder is that of the value without its `added` part: with feedback, the error that the
    digits leave.

    Elements enter at the stage of digit `top`; latency is one cycle plus one per digit. `top` and
    the weights may change while no element is inside.

    Attributes
    ----------
    top : In, the most significant digit
    weights : In, ``3**c * scale``, see `rtl.scale_finder.weight_bits`
    i : stream In: `value`, and `added`, which must be zero if elements follow each other
    o : stream Out: `trits`, zero above `top`; `rest`, ``value - added - sum_c trit_c * weight_c``
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        bits = config.requantized_bits
        super().__init__(
            {
                "top": In(range(config.max_planes)),
                "weights": In(data.ArrayLayout(weight_bits(config), config.max_planes)),
                "i": In(
                    stream.Signature(
                        data.StructLayout({"value": signed(bits), "added": signed(bits + 1)})
                    )
                ),
                "o": Out(
                    stream.Signature(
                        data.StructLayout(
                            {
                                "trits": data.ArrayLayout(Trit, config.max_planes),
                                "rest": signed(self.rest_bits),
                            }
                        )
                    )
                ),
            }
        )

    @property
    def rest_bits(self) -> int:
        """Signed width of a remainder: ``|value - sum| <= |value|``, and ``|added| < 2**bits``."""
        return self._config.requantized_bits + 2

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        advance = Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            self.i.ready.eq(advance),
        ]
        entered = Signal()
        value = Signal(signed(config.requantized_bits), reset_less=True)
        added = Signal(signed(config.requantized_bits + 1), reset_less=True)
        with m.If(advance):
            m.d.sync += entered.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += [value.eq(self.i.payload.value), added.eq(self.i.payload.added)]

        valid: Value = C(0, 1)
        rest: Value = C(0, signed(config.requantized_bits))
        trits = Signal(data.ArrayLayout(Trit, config.max_planes))
        for digit in reversed(range(config.max_planes)):
            enters = self.top == digit
            before = Signal(signed(config.requantized_bits), name=f"before_{digit}")
            found = Signal(Trit, name=f"found_{digit}")
            subtracted = Signal(Trit, name=f"subtracted_{digit}")
            above = Signal.like(trits, name=f"above_{digit}")
            weight = self.weights[digit]
            m.d.comb += [
                before.eq(Mux(enters, value, rest)),
                above.eq(Mux(enters, 0, trits.as_value())),
            ]
            # For x < 0, ~x is |x| - 1, and 2|x| > w is 2(~x) + 1 >= w. With a one behind as the
            # lowest bit, "at least" becomes "more than": one comparison for both signs.
            sign = before[-1]
            magnitude = before[:-1] ^ sign.replicate(len(before) - 1)
            m.d.comb += [
                found.nonzero.eq(Cat(sign, sign, magnitude) > (weight << 1)),
                found.negative.eq(found.nonzero & sign),
                subtracted.nonzero.eq(found.nonzero),
                subtracted.negative.eq(~sign),
            ]
            total: Value = before
            if digit == 0:
                total = Signal(signed(self.rest_bits))
                m.d.comb += total.eq(before - added)
            next_valid = Signal(name=f"valid_{digit}")
            next_rest = Signal(signed(len(total)), name=f"rest_{digit}", reset_less=True)
            next_trits = Signal.like(trits, name=f"trits_{digit}", reset_less=True)
            with m.If(advance):
                m.d.sync += [
                    next_valid.eq(Mux(enters, entered, valid)),
                    next_rest.eq(add_selected(total, subtracted, weight)),
                    next_trits.eq(above),
                    next_trits[digit].eq(found),
                ]
            valid, rest, trits = next_valid, next_rest, next_trits
        m.d.comb += [
            self.o.valid.eq(valid),
            self.o.payload.rest.eq(rest),
            self.o.payload.trits.eq(trits),
        ]
        return m
