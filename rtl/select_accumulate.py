"""Select-accumulate: weighted sums of ternary value digits, without multipliers."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.accumulator_bank import AccumulatorBank
from rtl.fixed_point import select, triple
from rtl.layouts import Trit, accumulate_layout, accumulator_layout

__all__ = ["SelectAccumulate"]


class SelectAccumulate(wiring.Component):
    """``acc[g][d] += weights[g] * trits[d]`` for the D elements of G heads.

    A lane passes, inverts or blocks a weight; for two planes together it chooses among the weight
    times one to four, of which three times is made once for all lanes. Digits and weights wait a
    cycle in registers; operations and their cycles are those of
    `rtl.accumulator_bank.AccumulatorBank`, which counts it in.

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
        lanes, planes = self._config.lanes, self._config.value_planes_per_cycle
        # blocked lanes add nothing: so the bank's accumulators keep their value
        trits = [
            data.View(Trit, Cat(trit.nonzero & bank.adding, trit.negative)) for trit in beat.trits
        ]
        terms: list[list[Value]] = [[Const(0)] * lanes for _ in beat.weights]
        for first in range(0, planes - 1, 2):
            pairs = [
                _Pair(m, trits[first * lanes + lane], trits[(first + 1) * lanes + lane])
                for lane in range(lanes)
            ]
            for g, weight in enumerate(beat.weights):
                multiples = _multiples(m, triple(weight, first))
                terms[g] = [
                    term + pair.select(multiples)
                    for term, pair in zip(terms[g], pairs, strict=True)
                ]
        if planes % 2:
            selects = [data.View(Trit, _registered(m, trit.as_value())) for trit in trits[-lanes:]]
            for g, weight in enumerate(beat.weights):
                top = _registered(m, triple(weight, planes - 1))
                terms[g] = [
                    term + select(trit, top) + (trit.nonzero & trit.negative)
                    for term, trit in zip(terms[g], selects, strict=True)
                ]
        bank.add(terms)
        return m


class _Pair:
    """Two trits as a number u = low + 3 * high: its sign, and which of 1, 2, 3, 4 it is.

    Registers hold what the lane adds by.
    """

    def __init__(self, m: Module, low: data.View, high: data.View) -> None:
        differ = low.negative ^ high.negative
        self._negative = _registered(
            m, Mux(high.nonzero, high.negative, low.nonzero & low.negative)
        )
        self._is = [
            _registered(m, is_it)
            for is_it in (
                low.nonzero & ~high.nonzero,
                low.nonzero & high.nonzero & differ,
                ~low.nonzero & high.nonzero,
                low.nonzero & high.nonzero & ~differ,
            )
        ]

    def select(self, multiples: list[Value]) -> Value:
        """u * weight, from the weight times 1, 2, 3 and 4."""
        bits = len(multiples[-1]) + 1
        chosen: Value = Const(0, bits)
        for multiple, is_it in zip(multiples, self._is, strict=True):
            extended = Cat(multiple, Const(0, bits - len(multiple)))
            chosen = chosen | (extended & is_it.replicate(bits))
        return (chosen ^ self._negative.replicate(bits)).as_signed() + self._negative


def _multiples(m: Module, weight: Value) -> list[Value]:
    """weight times 1, 2, 3 and 4, from registers: one add."""
    once, thrice = _registered(m, weight), _registered(m, triple(weight))
    return [once, Cat(0, once), thrice, Cat(0, 0, once)]


def _registered(m: Module, value: Value) -> Signal:
    register = Signal(value.shape(), reset_less=True)
    m.d.sync += register.eq(value)
    return register
