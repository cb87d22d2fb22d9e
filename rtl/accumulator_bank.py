"""The accumulators that the lanes of a value plane add to: clear, rescale, drain."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed

from kvtq_hw.config import EngineConfig
from rtl.layouts import Operation

__all__ = ["AccumulatorBank"]


class AccumulatorBank:
    """D accumulators for each of G heads, as registers of a module, and the order of operations.

    The module connects what its lanes add with `add`. Operations, in the order of the stream: ADD
    takes one cycle; CLEAR one; SHIFT, an arithmetic right shift of every accumulator by
    ``shifts[g]``, takes ``1 + slices * rescale_steps`` cycles, whatever the shift: one bit a cycle,
    so that a lane has no barrel shifter; DRAIN sends all elements out, one index a cycle.

    With one slice a plane an accumulator goes through its adder in every cycle and keeps its value
    by adding nothing: it then needs neither an enable nor a multiplexer behind the adder.

    Parameters
    ----------
    m : Module
        Receives the registers.
    config : EngineConfig
    i : stream interface, In, whose payload has `operation` and `shifts`
    o : stream interface, Out, `accumulator_layout`

    Attributes
    ----------
    adding : Signal
        An ADD is taken in this cycle.
    """

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
        self._moving = Signal(name="moving")  # every element to the place of the one before it
        self._shifting = Signal(name="shifting")
        self._step_slice = Signal(range(config.slices), name="step_slice")
        step = Signal(range(config.rescale_steps))
        shifts = Signal(i.payload.shifts.shape(), reset_less=True)
        self._by_one = [self._shifting & (step < shifts[g]) for g in heads]
        index = Signal(range(config.head_dim))

        m.d.comb += o.payload.last.eq(index == config.head_dim - 1)
        for g in heads:
            m.d.comb += o.payload.values[g].eq(self._accumulators[g][0])
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += i.ready.eq(1)
                with m.If(i.valid):
                    with m.Switch(i.payload.operation):
                        with m.Case(Operation.ADD):
                            m.d.comb += self.adding.eq(1)
                        with m.Case(Operation.CLEAR):
                            m.d.comb += self._clearing.eq(1)
                        with m.Case(Operation.SHIFT):
                            m.d.sync += shifts.eq(i.payload.shifts)
                            m.next = "SHIFT"
                        with m.Case(Operation.DRAIN):
                            m.next = "DRAIN"
            with m.State("SHIFT"):
                m.d.comb += self._shifting.eq(1)
                m.d.sync += step.eq(step + 1)
                with m.If(step == config.rescale_steps - 1):
                    m.d.sync += [step.eq(0), self._step_slice.eq(self._step_slice + 1)]
                    with m.If(self._step_slice == config.slices - 1):
                        m.d.sync += self._step_slice.eq(0)
                        m.next = "TAKE"
            with m.State("DRAIN"):
                m.d.comb += [o.valid.eq(1), self._moving.eq(o.ready)]
                with m.If(o.ready):
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == config.head_dim - 1):
                        m.d.sync += index.eq(0)
                        m.next = "TAKE"

    def add(self, enable: Value, slice_: Value, terms: list[list[Value]]) -> None:
        """Add ``terms[g][lane]`` to the accumulators of slice `slice_` where `enable` is high.

        Terms are zero where it is low. The operation that they belong to was taken in this cycle,
        or in the one before.
        """
        for g in range(self._config.query_group):
            for lane in range(self._config.lanes):
                if self._config.slices == 1:
                    self._add_always(g, lane, terms[g][lane])
                else:
                    self._add_to_slice(g, lane, enable, slice_, terms[g][lane])

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

    def _add_to_slice(self, g: int, lane: int, enable: Value, slice_: Value, term: Value) -> None:
        lanes = self._config.lanes
        accumulators = self._accumulators[g][lane::lanes]
        active = Mux(self._shifting, self._step_slice, slice_)
        chosen = Array(accumulators)[active]
        result = Mux(self._by_one[g], chosen >> 1, chosen) + term
        for number, accumulator in enumerate(accumulators):
            with self._m.If(self._clearing):
                self._m.d.sync += accumulator.eq(0)
            with self._m.Elif(self._moving):
                self._m.d.sync += accumulator.eq(self._following(g, number * lanes + lane))
            with self._m.Elif((enable | self._shifting) & (active == number)):
                self._m.d.sync += accumulator.eq(result)

    def _following(self, g: int, element: int) -> Value:
        """What element `element` becomes while the accumulators drain; the last one's is free."""
        accumulators = self._accumulators[g]
        return accumulators[min(element + 1, len(accumulators) - 1)]
