"""Drain queue: two places between a registered decision to move and a stream that may stall."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["DrainQueue"]


class DrainQueue(wiring.Component):
    """First in, first out, in two registers; one element a cycle, a cycle after its push.

    The source decides a cycle before it pushes, and asks `room` when it does: the sink's ready then
    reaches one flip-flop, not everything that moves.

    Parameters
    ----------
    layout : data.Layout
        Of an element.

    Attributes
    ----------
    push : In; only in the cycle after one with `room`
    element : In
    room : Out, a push in the next cycle finds a place, whatever the sink does
    o : stream Out
    """

    def __init__(self, layout: data.Layout) -> None:
        super().__init__(
            {
                "push": In(1),
                "element": In(layout),
                "room": Out(1),
                "o": Out(stream.Signature(layout)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        level = Signal(range(3))
        next_level = Signal(range(3))
        second = Signal.like(self.element, reset_less=True)
        pop = self.o.valid & self.o.ready
        m.d.comb += [
            self.o.valid.eq(level != 0),
            next_level.eq(level + self.push - pop),
            self.room.eq(next_level != 2),
        ]
        m.d.sync += level.eq(next_level)
        with m.If(self.push & (level == pop)):
            m.d.sync += self.o.payload.eq(self.element)
        with m.Elif(pop):
            m.d.sync += self.o.payload.eq(second)
        with m.If(self.push):
            m.d.sync += second.eq(self.element)
        return m
