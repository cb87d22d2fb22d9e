"""Value lanes: sums of the elements of value slices times softmax weights."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.accumulator_bank import AccumulatorBank
from rtl.elements import elements_of
from rtl.layouts import accumulate_layout, accumulator_layout

__all__ = ["ValueLanes"]


class ValueLanes(wiring.Component):
    """Accumulate ``acc[g][d] += weights[g] * elements[d]`` for the D elements of G heads.

    The kind of elements says how a lane multiplies: `rtl.elements.Trits` without multipliers,
    `rtl.elements.Integers` with one per lane and head. Registers hold the lanes' terms, or the
    terms' factors, for one cycle. Operations and their cycles are those of
    `rtl.accumulator_bank.AccumulatorBank`, which includes this cycle.

    Attributes
    ----------
    i : stream In, `accumulate_layout`
    o : stream Out, `accumulator_layout`, D transfers per DRAIN
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
        elements = elements_of(self._config)
        nonzero = elements.nonzero(beat.elements)
        bank = AccumulatorBank(m, self._config, self.i, self.o, nonzero)
        bank.add(elements.terms(m, beat.elements, beat.weights, bank.adding, bank.takes))
        return m
