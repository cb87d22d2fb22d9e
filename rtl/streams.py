"""Stream combinators: queues, forks to several sinks, joins of several sources.

In this example two sinks take a payload, each in its own time, one of them through a queue::

    m.submodules.queue = queue = Queue(layout, 4, buffered=False)
    fork = Fork(m, self.i.valid, renew=self.i.valid & self.i.ready)
    fork.to("queue", queue.i)
    fork.to("output", self.o)
    m.d.comb += [
        self.i.ready.eq(fork.ready),
        queue.i.payload.eq(self.i.payload),
        self.o.payload.eq(self.i.payload),
    ]
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any

from amaranth.hdl import (
    Elaboratable,
    Module,
    Mux,
    Shape,
    ShapeCastable,
    ShapeLike,
    Signal,
    Value,
)
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

__all__ = ["DrainQueue", "Fork", "Queue", "SkidBuffer", "join"]


class Queue(Elaboratable):
    """Keeps payloads of one shape between two streams: first in, first out.

    Throughput is one transfer per cycle; a buffered queue of one place takes and gives in turn.

    Parameters
    ----------
    shape : of the payload; a shape that is no layout becomes unsigned
    depth : payloads that the queue holds
    buffered : The memory is read a cycle ahead, as block RAM must be: latency 2 cycles, or 1 with
        one place. Otherwise it is read in the cycle of the transfer: latency 1 cycle.

    Attributes
    ----------
    i : stream In
    o : stream Out
    level : Signal, number of payloads in the queue
    """

    def __init__(self, shape: ShapeLike, depth: int, *, buffered: bool) -> None:
        of_memory = SyncFIFOBuffered if buffered else SyncFIFO
        self._fifo = fifo = of_memory(width=Shape.cast(shape).width, depth=depth)
        self.i, self.o = fifo.w_stream, fifo.r_stream
        if isinstance(shape, ShapeCastable):
            for port in (self.i, self.o):
                port.payload = shape(port.payload)
        self.level = fifo.level

    def elaborate(self, platform: object) -> Elaboratable:
        return self._fifo


class SkidBuffer(wiring.Component):
    """Passes a stream on in the same cycle, or keeps one transfer that its sink did not take.

    The source's ready means that the buffer is empty, and so depends on no input of the same cycle,
    as AXI demands of every output of a port. Latency 0 cycles if the sink is ready, throughput one
    transfer per cycle.

    Parameters
    ----------
    shape : of the payload

    Attributes
    ----------
    i : stream In
    o : stream Out
    """

    def __init__(self, shape: ShapeLike) -> None:
        super().__init__(
            {"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))},
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        full = Signal()
        kept = Signal.like(self.i.payload, reset_less=True)
        m.d.comb += [
            self.i.ready.eq(~full),
            self.o.valid.eq(full | self.i.valid),
            self.o.payload.eq(Mux(full, kept, self.i.payload)),
        ]
        m.d.sync += full.eq(self.o.valid & ~self.o.ready)
        with m.If(~full):
            m.d.sync += kept.eq(self.i.payload)
        return m


class DrainQueue(wiring.Component):
    """Keeps elements in two registers, first in, first out: one per cycle, a cycle after its push.

    The source decides to push one cycle ahead, when `room` is high: the sink's ready then reaches
    one flip-flop, not every register that moves with a push.

    Parameters
    ----------
    layout : of an element

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


class Fork:
    """Offers a payload to several sinks until each has taken it, in its own time.

    The caller connects the sinks' payloads. Latency is 0 cycles.

    Parameters
    ----------
    m : Module
        Receives a register per sink.
    valid : Value
        The payload is there.
    renew : Value
        In the next cycle another payload comes, which no sink has taken.
    """

    def __init__(self, m: Module, valid: Value, renew: Value) -> None:
        self._m = m
        self._valid = valid
        self._renew = renew
        self._sinks: list[tuple[Value, Value]] = []  # has taken all, takes now

    def to(self, name: str, sink: Any, *, times: Value | int = 1, when: Value | int = 1) -> Signal:
        """Offer the payload to a sink stream; return how often the sink has taken it.

        Parameters
        ----------
        name : of the sink, for its register
        times : how often the sink takes the payload, constant until `renew`
        when : a further condition for the offer
        """
        times = Value.cast(times)
        taken = Signal(len(times), name=f"{name}_taken")
        self._m.d.comb += sink.valid.eq(self._valid & when & (taken != times))
        with self._m.If(sink.valid & sink.ready):
            self._m.d.sync += taken.eq(taken + 1)
        with self._m.If(self._renew):
            self._m.d.sync += taken.eq(0)
        self._sinks.append((taken == times, sink.ready))
        return taken

    @property
    def taken(self) -> Value:
        """Whether every sink has taken the payload as often as it should."""
        return _all([taken for taken, _ in self._sinks])

    @property
    def ready(self) -> Value:
        """Whether every sink has taken the payload or takes it now, for sinks that take it once."""
        return _all([taken | ready for taken, ready in self._sinks])


def join(m: Module, sources: Sequence[Any], sinks: Sequence[Any]) -> None:
    """Let all sources and all sinks transfer in the same cycle; the caller connects payloads.

    Adds no register: no sink's valid depends on its own ready, no source's ready on its own valid.
    """
    for source in sources:
        others = [other.valid for other in sources if other is not source]
        m.d.comb += source.ready.eq(_all([*(sink.ready for sink in sinks), *others]))
    for sink in sinks:
        others = [other.ready for other in sinks if other is not sink]
        m.d.comb += sink.valid.eq(_all([*(source.valid for source in sources), *others]))


def _all(conditions: Sequence[Value]) -> Value:
    return reduce(operator.and_, conditions)
