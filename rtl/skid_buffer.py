"""Skid buffer: a stream whose ready comes from a register."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["SkidBuffer"]


class SkidBuffer(wiring.Component):
    """Passes a stream on in the same cycle, or keeps one transfer that its sink did not take.

    The source's ready says that the place is free, and so depends on no input of the same cycle:
    what AXI asks of every output of a port. Latency 0 cycles where the sink takes, throughput one
    transfer a cycle.

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
