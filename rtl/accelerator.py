"""The accelerator: appends to a ternary KV cache in memory and attends to it, behind AXI ports."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, ResetInserter, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import ADDRESS_BITS, WORD_BYTES
from rtl.anchors import Anchors
from rtl.append_path import AppendPath
from rtl.axi import Axi4, Axi4Lite, AxiStream, join_ports
from rtl.control import Control
from rtl.engine import Engine
from rtl.job_parts import attend_layout
from rtl.layouts import load_layout
from rtl.output_rotator import OutputRotator
from rtl.query_conditioner import QueryConditioner
from rtl.record_reader import RecordReader
from rtl.record_writer import RecordWriter
from rtl.scheduler import Scheduler
from rtl.streams import Fork, join
from rtl.tables import Tables
from rtl.value_exponents import ValueExponents

__all__ = ["Accelerator"]

_ELEMENT_BITS = 16
_OUTPUT_BITS = 32
_EXPONENT_BITS = 8


class Accelerator(wiring.Component):
    """Perform all KV cache work of a decode step, as docs/contract.md defines it.

    A job is one KV head in one decode step: its new key and value are conditioned, quantized and
    written to memory, the token that leaves the window is requantized, and G queries attend to all
    tokens. Jobs are described in registers (docs/registers.md); their vectors come and go as
    streams, in the order of the jobs. While one job is in the core, the next job is appended,
    conditioned and fetched.

    Attributes
    ----------
    s_axil : AXI4-Lite, subordinate: registers
    m_axi : AXI4, manager: the memory
    s_axis_key_value : AXI4-Stream, 32 bits: element d of the new key (low half) and of the new
        value, D beats per job that appends
    s_axis_query : AXI4-Stream, G x 16 bits: element d of every query, D beats per job that attends
    s_axis_table : AXI4-Stream, 32 bits: centres, feedback matrices and the state of anchors, one
        section per packet
    m_axis_output : AXI4-Stream, G x 32 bits: element d of every output, D beats per job that
        attends, TLAST on the last beat, TUSER the signed exponent of all outputs
    irq : Out, level-sensitive interrupt
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        group = config.query_group
        super().__init__(
            {
                "s_axil": In(Axi4Lite(ADDRESS_BITS, 8 * WORD_BYTES)),
                "m_axi": Out(Axi4(config.address_bits, config.memory_bits)),
                "s_axis_key_value": In(AxiStream(2 * _ELEMENT_BITS)),
                "s_axis_query": In(AxiStream(_ELEMENT_BITS * group)),
                "s_axis_table": In(AxiStream(32)),
                "m_axis_output": Out(AxiStream(_OUTPUT_BITS * group, _EXPONENT_BITS)),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        restart = Signal()
        restarted = ResetInserter(restart)
        m.submodules.control = control = Control(config)
        m.submodules.scheduler = scheduler = Scheduler(config)
        m.submodules.tables = tables = Tables(config)
        m.submodules.reader = reader = RecordReader(config)
        m.submodules.writer = writer = RecordWriter(config)
        core, conditioner, rotator = Engine(config), QueryConditioner(config), OutputRotator(config)
        exponents = ValueExponents(config)
        key_path, value_path = AppendPath(config), AppendPath(config)
        m.submodules.core = restarted(core)
        m.submodules.conditioner = restarted(conditioner)
        m.submodules.rotator = restarted(rotator)
        m.submodules.exponents = restarted(exponents)
        m.submodules.key_path = restarted(key_path)
        m.submodules.value_path = restarted(value_path)

        connect(m, flipped(self.s_axil), control.axi)
        connect(m, control.jobs, scheduler.jobs)
        connect(m, scheduler.done, control.done)
        join_ports(m, self.m_axi, reader.m_axi, writer.m_axi)
        m.d.comb += [self.irq.eq(control.irq), restart.eq(scheduler.restart)]

        # --- append -----------------------------------------------------------------------------
        connect(m, scheduler.fetches, reader.fetches)
        for side, path, read, write in (
            (scheduler.key, key_path, reader.key, writer.key),
            (scheduler.value, value_path, reader.value, writer.value),
        ):
            connect(m, side.tasks, path.task)
            connect(m, read.leaving, path.leaving)
            connect(m, path.records, write.bytes)
            connect(m, side.places, write.places)
            m.d.comb += [side.written.eq(write.written), read.appended.eq(side.appended)]
        connect(m, key_path.centres, tables.centres)
        connect(m, key_path.factors, tables.key_factors)
        connect(m, value_path.factors, tables.value_factors)
        m.d.comb += [
            key_path.written.ready.eq(1),
            exponents.written.valid.eq(value_path.written.valid),
            exponents.written.payload.value_exponent.eq(value_path.written.payload.exponent),
            value_path.written.ready.eq(exponents.written.ready),
        ]

        # --- attend -----------------------------------------------------------------------------
        connect(m, scheduler.queries, conditioner.task)
        connect(m, scheduler.reads, reader.jobs)
        connect(m, scheduler.exponents, exponents.tasks)
        connect(m, exponents.core, core.value_exponent)
        connect(m, exponents.outputs, rotator.task)
        connect(m, conditioner.o, core.query)
        connect(m, reader.key.slices, core.keys)
        connect(m, reader.value.slices, core.values)
        connect(m, core.output, rotator.i)
        # a job enters the core when its queries' exponents are known
        join(m, [scheduler.attends, conditioner.exponents], [core.job])
        m.d.comb += [
            *(
                core.job.payload[name].eq(scheduler.attends.payload[name])
                for name in attend_layout(config).members
            ),
            core.job.payload.query_exponent.eq(conditioner.exponents.payload.query_exponent),
        ]

        # --- the scheduler's view of the others -------------------------------------------------
        m.d.comb += [
            scheduler.job_read.eq(reader.job_read),
            scheduler.fetch_read.eq(reader.fetch_read),
            scheduler.read_error.eq(reader.error),
            scheduler.write_error.eq(writer.error),
            scheduler.idle.eq(reader.idle & writer.idle),
            reader.cancel.eq(scheduler.cancel),
            writer.cancel.eq(scheduler.cancel),
        ]
        self._connect_vectors(m, scheduler, key_path, value_path)
        self._connect_queries(m, scheduler, conditioner)
        self._connect_tables(m, tables, scheduler, core)
        self._connect_outputs(m, scheduler, rotator)
        self._count(m, control, scheduler, core, restart)
        return m

    def _connect_vectors(
        self, m: Module, scheduler: Scheduler, key_path: AppendPath, value_path: AppendPath
    ) -> None:
        """Give each beat of key and value elements to both append paths, each in its own time."""
        pair = self.s_axis_key_value
        moves = pair.tvalid & pair.tready
        fork = Fork(m, pair.tvalid & ~scheduler.discard, renew=moves | scheduler.restart)
        fork.to("key", key_path.vectors)
        fork.to("value", value_path.vectors)
        m.d.comb += [
            pair.tready.eq((scheduler.discard & scheduler.vectors_owed) | fork.ready),
            key_path.vectors.payload.value.eq(pair.tdata[:_ELEMENT_BITS]),
            value_path.vectors.payload.value.eq(pair.tdata[_ELEMENT_BITS:]),
            scheduler.vector_taken.eq(moves),
        ]

    def _connect_queries(
        self, m: Module, scheduler: Scheduler, conditioner: QueryConditioner
    ) -> None:
        """Give queries to the conditioner, or discard them."""
        queries = self.s_axis_query
        m.d.comb += [
            conditioner.i.valid.eq(queries.tvalid & ~scheduler.discard),
            conditioner.i.payload.eq(queries.tdata),
            queries.tready.eq(
                (scheduler.discard & scheduler.queries_owed)
                | (conditioner.i.ready & ~scheduler.discard)
            ),
            scheduler.query_taken.eq(queries.tvalid & queries.tready),
        ]

    def _connect_anchors(self, m: Module, scheduler: Scheduler, core: Engine) -> Any:
        """Connect the anchors; return their load stream."""
        m.submodules.anchors = anchors = Anchors(self._config)
        connect(m, scheduler.hits, anchors.tasks)
        connect(m, scheduler.decision, anchors.decision)
        # the block keeps the state of heads without a failed job, and what the host loads
        m.d.comb += [anchors.scores.eq(core.scores), anchors.restart.eq(scheduler.restart)]
        return anchors.load

    def _connect_tables(
        self, m: Module, tables: Tables, scheduler: Scheduler, core: Engine
    ) -> None:
        """Give each packet to the tables and the anchors, with its first word marked."""
        loads: list[Any] = [tables.load]
        if self._config.anchor_slots:
            loads.append(self._connect_anchors(m, scheduler, core))
        table = self.s_axis_table
        first = Signal(init=1)
        with m.If(table.tvalid & table.tready):
            m.d.sync += first.eq(table.tlast)
        words = stream.Signature(load_layout()).create()
        m.d.comb += [words.valid.eq(table.tvalid), table.tready.eq(words.ready)]
        join(m, [words], loads)
        for load in loads:
            m.d.comb += [load.payload.first.eq(first), load.payload.data.eq(table.tdata)]

    def _connect_outputs(self, m: Module, scheduler: Scheduler, rotator: OutputRotator) -> None:
        """Give outputs to the host; a job that has offered an output gives all of its outputs."""
        output = self.m_axis_output
        begun = Signal()
        open_ = ~scheduler.cancel | begun
        with m.If(output.tvalid):
            m.d.sync += begun.eq(~(output.tready & output.tlast))
        m.d.comb += [
            output.tvalid.eq(rotator.o.valid & open_),
            output.tdata.eq(Cat(Value.cast(value) for value in rotator.o.payload.values)),
            output.tuser.eq(rotator.o.payload.exponent),
            output.tlast.eq(rotator.o.payload.last),
            rotator.o.ready.eq(output.tready & open_),
            scheduler.output_begun.eq(begun),
            scheduler.attended.eq(output.tvalid & output.tready & output.tlast),
        ]

    def _count(
        self, m: Module, control: Control, scheduler: Scheduler, core: Engine, restart: Signal
    ) -> None:
        """Count events of the core, across its restarts, and of the memory port."""
        for name in core.counters.shape().members:
            before = Signal(32, name=f"{name}_before")
            with m.If(restart):
                m.d.sync += before.eq(before + core.counters[name])
            m.d.comb += control.counters[name].eq(before + core.counters[name])

        config = self._config
        planes = max(config.key_planes_per_cycle, config.value_planes_per_cycle)
        zeros = Signal(range(planes * config.lanes + 1))
        m.d.sync += zeros.eq(0)
        for port in (core.keys, core.values):  # at most one port transfers per cycle
            with m.If(port.valid & port.ready):
                m.d.sync += zeros.eq(sum(~trit.nonzero for trit in port.payload.elements))
        counted: dict[str, Value] = {
            "zero_digits": zeros,
            "append_cycles": scheduler.appending,
            "read_words": self.m_axi.rvalid & self.m_axi.rready,
            "written_words": self.m_axi.wvalid & self.m_axi.wready,
        }
        if config.anchor_slots:
            counted["new_anchors"] = scheduler.decision.taken & scheduler.decision.promoted
        for name, amount in counted.items():
            counter = Signal(32, name=name)
            m.d.sync += counter.eq(counter + amount)
            m.d.comb += control.counters[name].eq(counter)
