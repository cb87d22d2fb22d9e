"""Query buffer: the queries of a job, loaded an element per beat, read a slice at a time."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import queries_layout, query_layout

__all__ = ["QueryBuffer"]


class QueryBuffer(wiring.Component):
    """Registers for D elements of G queries.

    One cycle of ``start`` opens the input for D transfers; ``full`` rises after the last transfer.
    An element of -2**(query_bits-1) is stored as -query_max: lanes see a symmetric range.

    Attributes
    ----------
    start : In; only while `full` is high or after reset
    full : Out
    i : stream In, element d of every head, d = 0 .. D-1
    slice : In, slice number
    queries : Out, `queries_layout`, combinational from `slice`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "full": Out(1),
                "i": In(stream.Signature(query_layout(config))),
                "slice": In(range(config.slices)),
                "queries": Out(queries_layout(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        loading = Signal()
        position = Signal(range(config.head_dim))
        m.d.comb += self.i.ready.eq(loading)
        with m.If(self.start):
            m.d.sync += [loading.eq(1), self.full.eq(0)]

        taken = self.i.valid & self.i.ready
        with m.If(taken):
            m.d.sync += position.eq(position + 1)
            with m.If(position == config.head_dim - 1):
                m.d.sync += [position.eq(0), loading.eq(0), self.full.eq(1)]

        for g in range(config.query_group):
            # a shift register: after D beats the first element stands at index 0
            elements = [
                Signal(signed(config.query_bits), name=f"query_{g}_{d}", reset_less=True)
                for d in range(config.head_dim)
            ]
            entering = self.i.payload.values[g]
            symmetric = Mux(entering == -config.query_max - 1, -config.query_max, entering)
            with m.If(taken):
                for element, following in zip(elements, [*elements[1:], symmetric], strict=True):
                    m.d.sync += element.eq(following)
            for lane in range(config.lanes):
                choices = Array(elements[lane :: config.lanes])
                m.d.comb += self.queries[g][lane].eq(choices[self.slice])
        return m
