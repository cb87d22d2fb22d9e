"""Multiply-accumulate: the value lanes of the comparison engines, weighted sums of integers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.accumulator_bank import AccumulatorBank
from rtl.layouts import accumulate_layout, accumulator_layout

__all__ = ["MultiplyAccumulate"]


class MultiplyAccumulate(wiring.Component):
    """``acc[g][d] += weights[g] * integers[d]`` for the D elements of G heads.

    One multiplier a lane and head, and a register between it and the accumulator. Operations and
    their cycles are those of `rtl.accumulator_bank.AccumulatorBank`, which counts it in.

    Attributes
    ----------
    i : stream In, `accumulate_layout`
    o : stream Out, `accumulator_layout`, D transfers a DRAIN
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(accumulate_layout(config))),
                "o": Out(stream.Signature(accumulator_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = self.i.payload
        bank = AccumulatorBank(m, self._config, self.i, self.o)
        # nothing but an ADD gets through: so the bank's accumulators keep their value
        integers = [
            (integer.as_unsigned() & bank.adding.replicate(len(integer))).as_signed()
            for integer in beat.integers
        ]
        products = []
        for g, weight in enumerate(beat.weights):
            row = []
            for lane, integer in enumerate(integers):
                product = Signal.like(
                    Cat(weight, 0).as_signed() * integer, name=f"product_{g}_{lane}"
                )
                m.d.sync += product.eq(Cat(weight, 0).as_signed() * integer)
                row.append(product)
            products.append(row)
        bank.add(products)
        return m
