# amaranth: UnusedElaboratable=no
# (parts are also created to read their latencies)
"""Append path: turns new vectors, and vectors that leave the window, into records for memory."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig
from kvtq_hw.contract.packing import vector_bytes
from rtl.dequantizer import Dequantizer
from rtl.hadamard import Hadamard
from rtl.layouts import (
    append_task_layout,
    byte_layout,
    centres_signature,
    coded_plane_layout,
    element_layout,
    exponent_layout,
    factors_signature,
    vector_layout,
)
from rtl.pipeline import Pipeline
from rtl.quantizer import Quantizer
from rtl.record_packer import RecordPacker

__all__ = ["AppendPath"]


class AppendPath(wiring.Component):
    """Quantize vectors of one side, keys or values, into records, one vector per task.

    ::

        vectors --> centre --> Hadamard --+
                          +---------------+--> Quantizer --> RecordPacker --> records
        leaving --> Dequantizer ----------+        +--> written

    A task takes a new vector, which is centred and rotated as the task's flags say, or a vector
    that has been quantized before. A task ends when its last element is in the quantizer: the next
    vector comes in while this vector's digits go out, and a record is sent while the next scale is
    made.

    Attributes
    ----------
    task : stream In, `append_task_layout`
    vectors : stream In, `vector_layout`: D elements for each task that is not leaving
    leaving : stream In, `coded_plane_layout`: the planes of a vector of one run for each task that
        is leaving; the planes may come before their task
    records : stream Out, `byte_layout`, one record per task
    written : stream Out, `exponent_layout`, one per task, as soon as the vector's scales are known
    centres, factors : read ports of `rtl.tables.Tables`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "task": In(stream.Signature(append_task_layout(config))),
                "vectors": In(stream.Signature(vector_layout())),
                "leaving": In(stream.Signature(coded_plane_layout(config))),
                "records": Out(stream.Signature(byte_layout())),
                "written": Out(stream.Signature(exponent_layout(config))),
                "centres": Out(centres_signature(config)),
                "factors": Out(factors_signature(config)),
            }
        )

    def step_cycles(self, tier: int, body: int, feedback: bool) -> int:
        """Return the most cycles of a decode step that moves a token from the window to the body.

        Counted from the first element of the rotated new vector, quantized to `tier` digits, to the
        last byte of the leaving vector, requantized to `body` digits, whose planes are there in
        time. The new vector takes transform and load, scale, and digits; the leaving vector takes
        its last element, scale, digits, and bytes. Without feedback the leaving vector's digits may
        have to wait for the record before.
        """
        config = self._config
        dim, quantizer = config.head_dim, Quantizer(config)
        new = Hadamard(config).latency + 1 + dim + quantizer.scale_latency(tier) + dim
        leaving = 1 + quantizer.scale_latency(body) + RecordPacker.latency(body)
        digits = (body + 3) * dim if feedback else dim + vector_bytes(config, tier, 1)
        return new + leaving + digits + vector_bytes(config, body, 1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        last_element = config.head_dim - 1
        m.submodules.hadamard = hadamard = Hadamard(config)
        m.submodules.dequantizer = dequantizer = Dequantizer(config)
        m.submodules.quantizer = quantizer = Quantizer(config)
        m.submodules.record_packer = packer = RecordPacker(config)
        task = self.task.payload

        # --- new vectors: centred, then rotated or not --------------------------------------------
        centred = stream.Signature(element_layout()).create(path=("centred",))
        fed = Signal(range(config.head_dim + 1))  # elements of this task
        fetched = Signal()  # the centre's element is there
        feeds = Signal()
        centre = Signal.like(self.centres.value)
        front = Pipeline(m, feeds, centred)
        takes = Signal()
        m.d.comb += [
            feeds.eq(self.vectors.valid & self._wants(fed, fetched)),
            self.vectors.ready.eq(self._wants(fed, fetched) & front.advance),
            takes.eq(self.vectors.valid & self.vectors.ready),
            self.centres.table.eq(task.code.table),
            self.centres.element.eq(fed + takes),
            centre.eq(Mux(task.centre, _symmetric(self.centres.value), 0)),
        ]
        subtracted = front.stage(value=_symmetric(self.vectors.payload.value) - centre)
        front.finish(value=subtracted.value)

        # --- one of three ways into the quantizer -------------------------------------------------
        connect(m, flipped(self.leaving), dequantizer.i)
        into = quantizer.i
        m.d.comb += [
            hadamard.i.valid.eq(centred.valid & task.rotate),
            hadamard.i.payload.eq(centred.payload),
            quantizer.code.eq(task.code),
        ]
        with m.If(task.leaving):
            m.d.comb += [
                into.valid.eq(dequantizer.o.valid & self.task.valid),
                into.payload.value.eq(dequantizer.o.payload.value),
                dequantizer.o.ready.eq(into.ready & self.task.valid),
            ]
        with m.Elif(task.rotate):
            m.d.comb += [
                into.valid.eq(hadamard.o.valid),
                into.payload.value.eq(hadamard.o.payload.value),
                hadamard.o.ready.eq(into.ready),
                centred.ready.eq(hadamard.i.ready),
            ]
        with m.Else():
            m.d.comb += [
                into.valid.eq(centred.valid),
                into.payload.value.eq(centred.payload.value),
                centred.ready.eq(into.ready),
            ]

        entered = Signal(range(config.head_dim))
        enters = into.valid & into.ready
        m.d.comb += self.task.ready.eq(enters & (entered == last_element))
        with m.If(takes):
            m.d.sync += fed.eq(fed + 1)
        with m.If(enters):
            m.d.sync += entered.eq(entered + 1)
        m.d.sync += fetched.eq(self.task.valid)
        with m.If(self.task.ready):
            m.d.sync += [fed.eq(0), entered.eq(0), fetched.eq(0)]

        connect(m, quantizer.o, packer.i)
        connect(m, packer.o, flipped(self.records))
        connect(m, quantizer.scale, flipped(self.written))
        connect(m, quantizer.factors, flipped(self.factors))
        return m

    def _wants(self, fed: Signal, fetched: Signal) -> Value:
        """Return whether the task lacks elements of a new vector."""
        task = self.task
        return task.valid & ~task.payload.leaving & fetched & (fed != self._config.head_dim)


def _symmetric(value: Value) -> Value:
    """Return a 16-bit number, with -2**15 read as -VECTOR_MAX."""
    return Mux(value == -VECTOR_MAX - 1, -VECTOR_MAX, value)
