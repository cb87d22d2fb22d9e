"""Select-accumulate: weighted sums of ternary value digits, without multipliers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.config import EngineConfig
from rtl.accumulator_bank import AccumulatorBank
from rtl.fixed_point import select
from rtl.layouts import Trit, accumulate_layout, accumulator_layout

__all__ = ["SelectAccumulate"]


class SelectAccumulate(wiring.Component):
    """``acc[g][d] += weights[g] * trits[d]`` for the D elements of G heads.

    A lane passes, inverts or blocks a weight. Operations and their cycles are those of
    `rtl.accumulator_bank.AccumulatorBank`.

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
        # blocked lanes add nothing: so the bank's accumulators keep their value
        trits = [
            data.View(Trit, Cat(trit.nonzero & bank.adding, trit.negative)) for trit in beat.trits
        ]
        bank.add(
            bank.adding,
            beat.slice,
            [
                [select(trit, weight) + (trit.nonzero & trit.negative) for trit in trits]
                for weight in beat.weights
            ],
        )
        return m
