"""Control: registers on AXI4-Lite, the queue of jobs, interrupts."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import ADDRESS_BITS, WORD_BYTES, Kind, Register, register_map
from rtl.axi import Axi4Lite, Response
from rtl.layouts import ABSMEAN_CONSTANT_BITS, ANCHOR_BITS, HIT_BITS, start_layout
from rtl.streams import Queue, SkidBuffer

__all__ = ["Control", "control_counters_layout", "descriptor_layout", "job_end_layout"]

_QUEUE = 2  # depth in jobs
_STATUS_BITS = 4
_FLAGS = tuple(field.name for field in register_map()["job_flags"].fields)
_REGIONS = ("sinks", "body", "window")
_DIGITS = ("tier", "key", "value")
_OF_HEADS = {"query_exponent": "exponent", "sink_maximum": "maximum", "sink_weight": "weight"}
_NUMBERS = (
    "tokens",
    "sink_tokens",
    "body_tokens",
    "window_tokens",
    "window_start",
    "window_slot",
    "body_slot",
)


def descriptor_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a job descriptor, as the registers of docs/registers.md hold it.

    Numbers of tokens and slots have the registers' width, so that a number that is too large is
    detected. `key` and `value` hold the byte addresses of a head's regions.
    """
    addresses = data.StructLayout(dict.fromkeys(_REGIONS, unsigned(config.address_bits)))
    constants = data.ArrayLayout(unsigned(ABSMEAN_CONSTANT_BITS), config.max_planes)
    exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
    return data.StructLayout(
        {
            **dict.fromkeys(_FLAGS, 1),
            **dict.fromkeys(_NUMBERS, 32),
            **{f"{name}_digits": 3 for name in _DIGITS},
            "tier_constant": unsigned(ABSMEAN_CONSTANT_BITS),
            "key_constants": constants,
            "value_constants": constants,
            "table": 16,
            "anchors": ANCHOR_BITS,
            "anchor_threshold": HIT_BITS,
            "key": addresses,
            "value": addresses,
            "value_exponent": unsigned(config.scale_exponent_bits),
            "query_exponent": exponents,
            **start_layout(config).members,
        }
    )


def job_end_layout() -> data.StructLayout:
    """Return the layout of a job's end: a `kvtq_hw.contract.registers.JobStatus`."""
    return data.StructLayout({"status": unsigned(_STATUS_BITS)})


def control_counters_layout() -> data.StructLayout:
    """Return the layout of every counter that software reads, by its register's name."""
    names = (r.name for r in register_map().values() if _is_counter(r))
    return data.StructLayout(dict.fromkeys(names, unsigned(32)))


class Control(wiring.Component):
    """Hold the registers of docs/registers.md, and queue the jobs that they describe.

    A write takes effect in the cycle in which both its address and its word are there, whichever
    came first; a read in the cycle of its address. The answer comes in the next cycle. Throughput
    is one write and one read per cycle. While an answer waits for its consumer, one more write
    address, write word and read address are taken and kept: AWREADY, WREADY and ARREADY depend on
    no input of the same cycle. Writing `start` queues the descriptor as the registers hold it in
    the cycle of the write; a job leaves the queue at `jobs`.

    Attributes
    ----------
    axi : AXI4-Lite, subordinate
    jobs : stream Out, `descriptor_layout`
    done : stream In, `job_end_layout`: one transfer per job, in the jobs' order; always taken
    counters : In, `control_counters_layout`
    irq : Out, level-sensitive interrupt
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "axi": In(Axi4Lite(ADDRESS_BITS, 8 * WORD_BYTES)),
                "jobs": Out(stream.Signature(descriptor_layout(config))),
                "done": In(stream.Signature(job_end_layout())),
                "counters": In(control_counters_layout()),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: C901, PLR0915  hardware in one piece
        m = Module()
        axi, registers = self.axi, register_map()

        # --- the bus: a write needs address and word, an answer waits for its consumer ------------
        word_layout = data.StructLayout({"data": len(axi.wdata), "strb": len(axi.wstrb)})
        m.submodules.aw = aw = SkidBuffer(len(axi.awaddr))
        m.submodules.w = w = SkidBuffer(word_layout)
        m.submodules.ar = ar = SkidBuffer(len(axi.araddr))
        writing, reading = Signal(), Signal()
        m.d.comb += [
            aw.i.valid.eq(axi.awvalid),
            aw.i.payload.eq(axi.awaddr),
            axi.awready.eq(aw.i.ready),
            w.i.valid.eq(axi.wvalid),
            w.i.payload.data.eq(axi.wdata),
            w.i.payload.strb.eq(axi.wstrb),
            axi.wready.eq(w.i.ready),
            ar.i.valid.eq(axi.arvalid),
            ar.i.payload.eq(axi.araddr),
            axi.arready.eq(ar.i.ready),
            writing.eq(aw.o.valid & w.o.valid & (~axi.bvalid | axi.bready)),
            aw.o.ready.eq(writing),
            w.o.ready.eq(writing),
            ar.o.ready.eq(~axi.rvalid | axi.rready),
            reading.eq(ar.o.valid & ar.o.ready),
        ]
        word_of = slice((WORD_BYTES - 1).bit_length(), None)
        write_word, read_word = aw.o.payload[word_of], ar.o.payload[word_of]
        strobed = Cat(bit.replicate(8) for bit in w.o.payload.strb)

        # --- fields: values that software reads and writes ----------------------------------------
        events, clears = {}, {}
        values: dict[tuple[str, str], list[Value]] = {}
        for register in registers.values():
            for field in register.fields:
                bits = slice(field.low, field.low + field.width)
                entry = values[register.name, field.name] = []
                for index in range(register.count):
                    signal = Signal(
                        field.width, name=f"{register.name}_{index}_{field.name}", init=field.reset
                    )
                    address = register.address // WORD_BYTES + index
                    mask = strobed[bits] & (writing & (write_word == address)).replicate(
                        field.width
                    )
                    written = w.o.payload.data[bits] & mask
                    entry.append(signal)
                    if field.kind is Kind.STORED:
                        m.d.sync += signal.eq(signal & ~mask | written)
                    elif field.kind is Kind.PULSE:
                        m.d.comb += signal.eq(written)
                    elif field.kind is Kind.EVENT:
                        events[field.name] = happens = Signal(name=f"{field.name}_happens")
                        clears[field.name] = written
                        m.d.sync += signal.eq(signal & ~written | happens)

        # --- jobs ---------------------------------------------------------------------------------
        layout = descriptor_layout(self._config)
        m.submodules.queue = queue = Queue(layout, _QUEUE, buffered=False)
        connect(m, queue.o, flipped(self.jobs))
        self._describe(m, values, queue.i.payload)
        start, ended = values["control", "start"][0], self.done.valid
        free = _QUEUE - queue.level
        m.d.comb += [queue.i.valid.eq(start), self.done.ready.eq(1)]
        pending, completed = Signal(4), Signal(32)
        last_status = Signal(_STATUS_BITS)
        first_error = Signal(data.StructLayout({"status": _STATUS_BITS, "job": 24}))
        status = self.done.payload.status
        enters = start & queue.i.ready
        m.d.sync += pending.eq(pending + enters - ended)
        with m.If(ended):
            m.d.sync += [completed.eq(completed + 1), last_status.eq(status)]
        failed = ended & (status != 0)
        with m.If(failed & (~values["interrupt", "error"][0] | clears["error"])):
            m.d.sync += [first_error.status.eq(status), first_error.job.eq(completed)]
        enabled = [
            values["interrupt", name][0] & values["interrupt_enable", name][0] for name in events
        ]
        m.d.comb += [
            events["done"].eq(ended),
            events["error"].eq(failed),
            events["overrun"].eq(start & ~queue.i.ready),
            self.irq.eq(Cat(enabled).any()),
        ]

        # --- inputs: what the hardware reports ----------------------------------------------------
        config = self._config
        inputs: dict[tuple[str, str], Value | int] = {
            ("shape", "head_dim"): config.head_dim,
            ("shape", "query_group"): config.query_group,
            ("shape", "max_planes"): config.max_planes,
            ("max_context", "tokens"): config.max_context,
            ("status", "free"): free,
            ("status", "pending"): pending,
            ("completed", "jobs"): completed,
            ("last_status", "status"): last_status,
            ("first_error", "status"): first_error.status,
            ("first_error", "job"): first_error.job,
        }
        for name in control_counters_layout().members:
            inputs[name, "count"] = self.counters[name]
        for register in registers.values():
            for field in register.fields:
                if field.kind is Kind.INPUT:
                    (signal,) = values[register.name, field.name]
                    m.d.comb += signal.eq(inputs[register.name, field.name])

        # --- answers ------------------------------------------------------------------------------
        read = Signal(8 * WORD_BYTES)
        read_known, write_known = Signal(), Signal()
        with m.Switch(read_word):
            for register in registers.values():
                for index in range(register.count):
                    with m.Case(register.address // WORD_BYTES + index):
                        m.d.comb += read_known.eq(1)
                        for field in register.fields:
                            if field.kind is not Kind.PULSE:
                                bits = slice(field.low, field.low + field.width)
                                value = values[register.name, field.name][index]
                                m.d.comb += read[bits].eq(value)
        words = [r.address // WORD_BYTES + i for r in registers.values() for i in range(r.count)]
        with m.Switch(write_word):
            with m.Case(*words):
                m.d.comb += write_known.eq(1)
        with m.If(writing):
            m.d.sync += axi.bresp.eq(Mux(write_known, Response.OKAY, Response.SLVERR))
        with m.If(reading):
            m.d.sync += [
                axi.rdata.eq(read),
                axi.rresp.eq(Mux(read_known, Response.OKAY, Response.SLVERR)),
            ]
        m.d.sync += [
            axi.bvalid.eq(writing | (axi.bvalid & ~axi.bready)),
            axi.rvalid.eq(reading | (axi.rvalid & ~axi.rready)),
        ]
        return m

    def _describe(
        self, m: Module, values: dict[tuple[str, str], list[Value]], descriptor: data.View
    ) -> None:
        """Assign the descriptor from the registers' fields."""
        (exponent,) = values["value_exponent", "floor"]
        m.d.comb += [
            *(descriptor[name].eq(values["job_flags", name][0]) for name in _FLAGS),
            *(descriptor[f"{name}_digits"].eq(values["digits", name][0]) for name in _DIGITS),
            descriptor.tier_constant.eq(values["tier_constant", "constant"][0]),
            descriptor.table.eq(values["table", "index"][0]),
            descriptor.anchors.eq(values["anchors", "count"][0]),
            descriptor.anchor_threshold.eq(values["anchor_threshold", "hits"][0]),
            descriptor.value_exponent.eq(exponent),
        ]
        for name in _NUMBERS:
            m.d.comb += descriptor[name].eq(values[name, _only_field(name)][0])
        for name, field in _OF_HEADS.items():
            for target, source in zip(descriptor[name], values[name, field], strict=False):
                m.d.comb += target.eq(source)
        for tensor in ("key", "value"):
            constants = values[f"{tensor}_constant", "constant"]
            for target, source in zip(descriptor[f"{tensor}_constants"], constants, strict=False):
                m.d.comb += target.eq(source)
            for region in _REGIONS:
                address = Cat(values[f"{tensor}_{region}", "address"])
                m.d.comb += descriptor[tensor][region].eq(address)


def _only_field(name: str) -> str:
    (field,) = register_map()[name].fields
    return field.name


def _is_counter(register: Register) -> bool:
    return [field.name for field in register.fields] == ["count"] and (
        register.fields[0].kind is Kind.INPUT
    )
