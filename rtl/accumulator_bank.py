"""Accumulator bank: the accumulators of the value lanes, with clear, rescale and drain."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib.wiring import connect, flipped

from kvtq_hw.contract.config import EngineConfig
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

    With one slice per plane an accumulator goes through its adder in every cycle and keeps its
    value by adding zero: it then needs neither an enable nor a multiplexer behind the adder.

    Parameters
    ----------
    m : Module
        Receives the registers.
    config : EngineConfig
    i : stream interface, In, whose payload has `operation`, `slice` and `shifts`
    o : stream interface, Out, `accumulator_layout`

    Attributes
    ----------
    adding : Signal
        An ADD is taken in this cycle.
    """

    DRAIN_LATENCY = 3

    def __init__(self, m: Module, config: EngineConfig, i: Any, o: Any) -> None:
        self._m = m
        self._config = config
        self.adding = Signal()
        heads = range(config.query_group)
        self._accumulators = [
            [
                Signal(signed(config.accumulator_bits), name=f"acc_{g}_{d}", reset_less=True)
                for d in range(config.head_dim)
            ]
            for g in heads
        ]
        self._clearing = Signal(name="clearing")
        self._moving = Signal(name="moving")  # every element moves to the place before its own
        self._by_one = [Signal(name=f"by_one_{g}") for g in heads]
        self._enable = Signal(name="enable")  # accumulators of slice `active` take their result
        self._active = Signal(range(config.slices), name="active")
        moving_last = Signal()

        # effects of the current operation in the next cycle
        clear, move, shifting = Signal(), Signal(), Signal()
        step_slice = Signal(range(config.slices))
        step = Signal(range(config.rescale_steps))
        shifts = Signal(i.payload.shifts.shape(), reset_less=True)
        index = Signal(range(config.head_dim))
        m.d.sync += [
            self._clearing.eq(clear),
            self._moving.eq(move),
            moving_last.eq(index == config.head_dim - 1),
            self._enable.eq(self.adding | shifting),
            self._active.eq(Mux(shifting, step_slice, i.payload.slice)),
            *(self._by_one[g].eq(shifting & (step < shifts[g])) for g in heads),
        ]

        m.submodules.queue = queue = DrainQueue(accumulator_layout(config))
        m.d.comb += [queue.push.eq(self._moving), queue.element.last.eq(moving_last)]
        for g in heads:
            m.d.comb += queue.element.values[g].eq(self._accumulators[g][0])
        connect(m, queue.o, flipped(o))

        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += i.ready.eq(1)
                with m.If(i.valid):
                    with m.Switch(i.payload.operation):
                        with m.Case(Operation.ADD):
                            m.d.comb += self.adding.eq(1)
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
                m.d.comb += move.eq(queue.room)
                with m.If(queue.room):
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == config.head_dim - 1):
                        m.d.sync += index.eq(0)
                        m.next = "TAKE"

    def add(self, terms: list[list[Value]]) -> None:
        """Add ``terms[g][lane]``: an ADD's terms in the cycle after the ADD is taken, else zero."""
        for g in range(self._config.query_group):
            for lane in range(self._config.lanes):
                if self._config.slices == 1:
                    self._add_always(g, lane, terms[g][lane])
                else:
                    self._add_to_slice(g, lane, terms[g][lane])

    def _add_always(self, g: int, lane: int, term: Value) -> None:
        accumulator = self._accumulators[g][lane]
        bits = len(accumulator)
        keep = ~(self._clearing | self._moving | self._by_one[g])
        kept = (
            (accumulator.as_unsigned() & keep.replicate(bits))
            | (Cat(accumulator[1:], accumulator[-1]) & self._by_one[g].replicate(bits))
            | (self._following(g, lane).as_unsigned() & self._moving.replicate(bits))
        )
        self._m.d.sync += accumulator.eq(kept.as_signed() + term)

    def _add_to_slice(self, g: int, lane: int, term: Value) -> None:
        lanes = self._config.lanes
        accumulators = self._accumulators[g][lane::lanes]
        chosen = Array(accumulators)[self._active]
        result = Mux(self._by_one[g], chosen >> 1, chosen) + term
        for number, accumulator in enumerate(accumulators):
            with self._m.If(self._clearing):
                self._m.d.sync += accumulator.eq(0)
            with self._m.Elif(self._moving):
                self._m.d.sync += accumulator.eq(self._following(g, number * lanes + lane))
            with self._m.Elif(self._enable & (self._active == number)):
                self._m.d.sync += accumulator.eq(result)

    def _following(self, g: int, element: int) -> Value:
        """Return the next value of `element` in a drain; that of the last element is arbitrary."""
        accumulators = self._accumulators[g]
        return accumulators[min(element + 1, len(accumulators) - 1)]
