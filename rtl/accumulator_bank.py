"""Accumulator bank: the accumulators of the value lanes, with clear, rescale and drain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib.wiring import connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.elements import Term
from rtl.layouts import Operation, accumulator_layout
from rtl.streams import DrainQueue

__all__ = ["AccumulatorBank"]


class AccumulatorBank:
    """D accumulators for each of G heads, as registers of a module, and their operations.

    The module connects its lanes' terms with `add`. Operations, in the order of the stream:

    - ADD and CLEAR take one cycle each.
    - SHIFT is an arithmetic right shift of every accumulator by ``shifts[g]``. It takes
      ``1 + slices * rescale_steps`` cycles, whatever the shift: one bit per cycle, so that a lane
      has no barrel shifter.
    - DRAIN takes ``1 + D`` cycles and sends all elements out, one index per cycle, the first
      element `DRAIN_LATENCY` cycles after DRAIN was taken.

    An operation changes the accumulators one cycle after it was decided: registers control all
    accumulators, and lanes have a cycle to prepare their terms.

    An element has one enable for the accumulators of all heads, and takes the result of its lane
    only where a value may change: at CLEAR, at a step of SHIFT that some head still needs, at an
    ADD with a weight that is not zero and digits in this lane that are not all zero. A drain moves
    nothing: it reads an element through the multiplexers of slices, which the lanes have anyway,
    and one of lanes.

    Parameters
    ----------
    m : Module
        Receives the registers.
    config : EngineConfig
    i : stream interface, In, whose payload has `operation`, `weighty`, `slice` and `shifts`
    o : stream interface, Out, `accumulator_layout`
    nonzero : per lane, whether any of the payload's digits of the lane is not zero

    Attributes
    ----------
    adding : Signal
        An ADD with a weight that is not zero is taken in this cycle.
    takes : list[Signal]
        Per lane: its term must be renewed at this clock edge, with the ADD's, or with zero if no
        ADD is taken. Else the term stays or is not read. With several slices per plane, a lane
        whose digits are zero takes nothing, and everything behind its term stands still. With one
        slice it takes zero: the next weights would move the term that stayed.
    """

    DRAIN_LATENCY = 3

    def __init__(
        self, m: Module, config: EngineConfig, i: Any, o: Any, nonzero: Sequence[Value]
    ) -> None:
        self._m = m
        self._config = config
        self.adding = Signal()
        heads, lanes = range(config.query_group), range(config.lanes)
        self.takes = [Signal(name=f"takes_{n}") for n in lanes]
        self._accumulators = [
            [
                Signal(signed(config.accumulator_bits), name=f"acc_{g}_{d}", reset_less=True)
                for d in range(config.head_dim)
            ]
            for g in heads
        ]
        self._clearing = Signal(name="clearing")
        self._by_one = [Signal(name=f"by_one_{g}") for g in heads]

        # effects of the current operation in the next cycle
        clear, read, shifting, stepping = Signal(), Signal(), Signal(), Signal()
        step_slice = Signal(range(config.slices))
        step = Signal(range(config.rescale_steps))
        shifts = Signal(i.payload.shifts.shape(), reset_less=True)
        by_one = [Signal(name=f"shifts_{g}") for g in heads]
        m.d.comb += [by_one[g].eq(shifting & (step < shifts[g])) for g in heads]
        m.d.comb += stepping.eq(Cat(by_one).any())
        m.d.sync += self._clearing.eq(clear)
        m.d.sync += [self._by_one[g].eq(by_one[g]) for g in heads]
        read_slice = Signal(range(config.slices))
        number = Mux(read, read_slice, Mux(stepping, step_slice, i.payload.slice))
        self._lanes = [self._lane(n, nonzero[n], stepping, clear, read, number) for n in lanes]
        self._chosen = [[self._choose(g, n) for n in lanes] for g in heads]
        read_last = self._drain(o, read, read_slice)

        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += i.ready.eq(1)
                with m.If(i.valid):
                    with m.Switch(i.payload.operation):
                        with m.Case(Operation.ADD):
                            m.d.comb += self.adding.eq(i.payload.weighty)
                        with m.Case(Operation.CLEAR):
                            m.d.comb += clear.eq(1)
                        with m.Case(Operation.SHIFT):
                            m.d.sync += shifts.eq(i.payload.shifts)
                            m.next = "SHIFT"
                        with m.Case(Operation.DRAIN):
                            m.next = "DRAIN"
            with m.State("SHIFT"):
                m.d.comb += shifting.eq(1)
                m.d.sync += step.eq(step + 1)
                with m.If(step == config.rescale_steps - 1):
                    m.d.sync += [step.eq(0), step_slice.eq(step_slice + 1)]
                    with m.If(step_slice == config.slices - 1):
                        m.d.sync += step_slice.eq(0)
                        m.next = "TAKE"
            with m.State("DRAIN"):
                m.d.comb += read.eq(self._queue.room)
                with m.If(read & read_last):
                    m.next = "TAKE"

    def _lane(
        self, lane: int, nonzero: Value, stepping: Value, clear: Value, read: Value, number: Value
    ) -> tuple[Signal, Signal]:
        """Return whether an element takes the lane's result, and its slice, also in a drain."""
        m, config = self._m, self._config
        enable = Signal(name=f"enable_{lane}")
        slice_number = Signal(range(config.slices), name=f"slice_{lane}", reset_less=True)
        adds = self.adding & nonzero
        takes = self.adding if config.slices == 1 else adds
        m.d.comb += self.takes[lane].eq(takes | stepping | clear | read)
        m.d.sync += enable.eq(adds | stepping)
        with m.If(self.takes[lane]):
            m.d.sync += slice_number.eq(number)
        return enable, slice_number

    def _choose(self, g: int, lane: int) -> Signal:
        """Return the lane's accumulator of its slice."""
        chosen = Signal(signed(self._config.accumulator_bits), name=f"chosen_{g}_{lane}")
        elements = Array(self._accumulators[g][lane :: self._config.lanes])
        self._m.d.comb += chosen.eq(elements[self._lanes[lane][1]])
        return chosen

    def _drain(self, o: Any, read: Value, read_slice: Signal) -> Value:
        """Send an element a cycle after each `read`; return whether the next one is the last."""
        m, config = self._m, self._config
        m.submodules.queue = self._queue = DrainQueue(accumulator_layout(config))
        connect(m, self._queue.o, flipped(o))
        read_lane, lane = Signal(range(config.lanes)), Signal(range(config.lanes))
        reading, reading_last = Signal(), Signal()
        last_lane = read_lane == config.lanes - 1
        last = last_lane & (read_slice == config.slices - 1)
        m.d.sync += reading.eq(read)
        with m.If(read):
            m.d.sync += [lane.eq(read_lane), reading_last.eq(last), read_lane.eq(read_lane + 1)]
            with m.If(last_lane):
                m.d.sync += [read_lane.eq(0), read_slice.eq(Mux(last, 0, read_slice + 1))]
        m.d.comb += [self._queue.push.eq(reading), self._queue.element.last.eq(reading_last)]
        for chosen, value in zip(self._chosen, self._queue.element.values, strict=True):
            m.d.comb += value.eq(Array(chosen)[lane])
        return last

    def add(self, terms: list[list[Term]]) -> None:
        """Add ``terms[g][lane]``, which `takes` renewed at the last clock edge."""
        for lane, (enable, slice_number) in enumerate(self._lanes):
            results = [self._result(g, lane, row[lane]) for g, row in enumerate(terms)]
            for number in range(self._config.slices):
                element = number * self._config.lanes + lane
                with self._m.If(self._clearing | (enable & (slice_number == number))):
                    for accumulators, result in zip(self._accumulators, results, strict=True):
                        self._m.d.sync += accumulators[element].eq(result)

    def _result(self, g: int, lane: int, term: Term) -> Value:
        """Return the lane's accumulator of its slice, cleared, shifted or as it is, plus a term."""
        chosen = self._chosen[g][lane]
        keeps = ~(self._clearing | self._by_one[g])
        # AND-OR gates before the adder, which adds zero where the bank clears or shifts
        kept = (chosen.as_unsigned() & keeps.replicate(len(chosen))) | (
            Cat(chosen[1:], chosen[-1]) & self._by_one[g].replicate(len(chosen))
        )
        if not term.ones:
            return kept.as_signed() + term.value
        # one adder: the carry out of an additional lowest place is the first of the ones
        first, *others = term.ones
        total = Cat(1, kept).as_signed() + Cat(first, term.value).as_signed()
        return sum(others, total[1:].as_signed())
