"""Value exponents: for each KV head the largest exponent of any value scale that was written."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import output_task_layout, value_exponent_layout, value_exponent_task_layout
from rtl.streams import Fork, Queue

__all__ = ["ValueExponents"]


class ValueExponents(wiring.Component):
    """Keeps each head's largest exponent of any value scale, one job after the other.

    ``maximum = max(first ? 0 : maximum, floor, exponents that the job writes)``, kept in a memory
    of one word for each of the `table_heads` heads. For a job that attends, the core and the output
    rotator get the maximum when the job's last scale is known, three cycles after the task at the
    earliest.

    Attributes
    ----------
    tasks : stream In, `value_exponent_task_layout`
    written : stream In, `value_exponent_layout`, of each value record, in the order of the tasks
    core : stream Out, `value_exponent_layout`: one for each task that attends
    outputs : stream Out, `output_task_layout`: one for each task that attends
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "tasks": In(stream.Signature(value_exponent_task_layout(config))),
                "written": In(stream.Signature(value_exponent_layout(config))),
                "core": Out(stream.Signature(value_exponent_layout(config))),
                "outputs": Out(stream.Signature(output_task_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        shape = unsigned(config.scale_exponent_bits)
        m.submodules.maxima = maxima = Memory(shape=shape, depth=config.table_heads, init=[])
        read, write = maxima.read_port(), maxima.write_port()
        task = Signal(value_exponent_task_layout(config))
        maximum = Signal(shape)
        left = Signal.like(task.records)
        # outputs of a job may still leave when the exponent of the next one is known
        m.submodules.waiting = waiting = Queue(output_task_layout(config), 2, buffered=True)
        connect(m, waiting.o, flipped(self.outputs))
        tells, told = Signal(), Signal()
        fork = Fork(m, tells, renew=told)
        fork.to("core", self.core)
        fork.to("outputs", waiting.i)
        m.d.comb += [
            read.addr.eq(self.tasks.payload.table),
            write.addr.eq(task.table),
            write.data.eq(maximum),
            self.core.payload.value_exponent.eq(maximum),
            waiting.i.payload.value_exponent.eq(maximum),
            waiting.i.payload.rotate.eq(task.rotate),
            told.eq(tells & fork.ready),
        ]
        with m.FSM():
            with m.State("TASK"):
                m.d.comb += [self.tasks.ready.eq(1), read.en.eq(self.tasks.valid)]
                with m.If(self.tasks.valid):
                    m.d.sync += [task.eq(self.tasks.payload), left.eq(self.tasks.payload.records)]
                    m.next = "START"
            with m.State("START"):
                m.d.sync += maximum.eq(_larger(Mux(task.first, 0, read.data), task.floor))
                m.next = "COLLECT"
            with m.State("COLLECT"):
                with m.If(left == 0):
                    m.d.comb += write.en.eq(1)
                    m.next = "TASK"
                    with m.If(task.attend):
                        m.next = "TELL"
                with m.Else():
                    m.d.comb += self.written.ready.eq(1)
                    exponent = self.written.payload.value_exponent
                    with m.If(self.written.valid):
                        m.d.sync += [maximum.eq(_larger(maximum, exponent)), left.eq(left - 1)]
            with m.State("TELL"):
                m.d.comb += tells.eq(1)
                with m.If(told):
                    m.next = "TASK"
        return m


def _larger(a: Value, b: Value) -> Value:
    return Mux(a > b, a, b)
