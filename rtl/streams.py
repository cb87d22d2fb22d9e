"""Streams put together: queues, forks to several sinks, joins of several sources.

A payload that two sinks take, each in its own time, one of them through a queue::

    m.submodules.queue = queue = Queue(layout, depth=4)
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

from amaranth.hdl import Elaboratable, Module, Shape, ShapeCastable, ShapeLike, Signal, Value
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered

__all__ = ["Fork", "Queue", "join"]


class Queue(Elaboratable):
    """First in, first out: payloads of one shape between two streams.

    Throughput is one transfer per cycle, but for a buffered queue of one place, which takes and
    gives in turn.

    Parameters
    ----------
    shape : of the payload; unsigned, if it is no layout
    depth : payloads that the queue holds
    buffered : The memory is read a cycle ahead, as block RAM is: latency 2 cycles, or 1 with one
        place. Otherwise the latency is 1 cycle, and the memory is read in the same cycle.

    Attributes
    ----------
    i : stream In
    o : stream Out
    level : Signal, number of payloads in the queue
    """

    def __init__(self, shape: ShapeLike, depth: int, *, buffered: bool) -> None:
        kind = SyncFIFOBuffered if buffered else SyncFIFO
        self._fifo = fifo = kind(width=Shape.cast(shape).width, depth=depth)
        self.i, self.o = fifo.w_stream, fifo.r_stream
        if isinstance(shape, ShapeCastable):
            for port in (self.i, self.o):
                port.payload = shape(port.payload)
        self.level = fifo.level

    def elaborate(self, platform: object) -> Elaboratable:
        return self._fifo


class Fork:
    """Offers a payload to several sinks until each has taken it, in its own time.

    The payloads of the sinks are the caller's to connect. Latency is 0 cycles.

    Parameters
    ----------
    m : Module
        Receives a register per sink.
    valid : Value
        The payload is there.
    renew : Value
        In the next cycle no sink has taken the payload: another one comes.
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
        """Every sink has taken the payload as often as it should."""
        return _all([taken for taken, _ in self._sinks])

    @property
    def ready(self) -> Value:
        """Every sink has taken the payload or takes it now; only where each takes it once."""
        return _all([taken | ready for taken, ready in self._sinks])


def join(m: Module, sources: Sequence[Any], sinks: Sequence[Any]) -> None:
    """Let all sources and all sinks transfer in the same cycle; payloads are the caller's.

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
