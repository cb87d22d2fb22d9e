"""Output rotator: rotates attention outputs back where the values were rotated."""

from __future__ import annotations

from amaranth.hdl import Array, C, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.hadamard import Walsh, negative_signs
from rtl.layouts import output_layout, output_task_layout, rotated_output_layout
from rtl.pipeline import Pipeline

__all__ = ["OutputRotator"]


class OutputRotator(wiring.Component):
    """Compute ``s * (H out)`` exactly, or pass outputs on, with the exponent of the true output.

    There is one transform per head. Throughput one element per cycle; `latency` cycles. A job's
    first element is taken when the previous job's last element has left the transforms.

    Attributes
    ----------
    task : stream In, `output_task_layout`, one transfer per job, taken with the job's last output
    i : stream In, `output_layout`, D transfers per job
    o : stream Out, `rotated_output_layout`, D transfers per job
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "task": In(stream.Signature(output_task_layout(config))),
                "i": In(stream.Signature(output_layout(config))),
                "o": Out(stream.Signature(rotated_output_layout(config))),
            }
        )

    def latency(self, rotate: bool) -> int:
        """Return the cycles from an element's transfer to the result at its position."""
        return 1 + (Walsh(self._config, self._config.output_bits).latency if rotate else 0)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, dim = self._config, self._config.head_dim
        rotate = self.task.payload.rotate
        left = Signal(range(dim))  # elements that have left the transforms
        complete = Signal()  # all of the job's elements have come in
        passing = Signal()

        transforms = []
        for g in range(config.query_group):
            m.submodules[f"walsh_{g}"] = walsh = Walsh(config, config.output_bits)
            transforms.append(walsh)
        first = transforms[0]
        pipe = Pipeline(m, Mux(rotate, first.o.valid, passing), self.o)
        m.d.comb += [
            passing.eq(self.i.valid & self.task.valid & ~complete),
            self.i.ready.eq(self.task.valid & ~complete & Mux(rotate, first.i.ready, pipe.advance)),
        ]
        negative = Array(C(bit, 1) for bit in negative_signs(dim))
        values = []
        for g, walsh in enumerate(transforms):
            output = self.i.payload.values[g]
            rotated = walsh.o.payload.value
            m.d.comb += [
                walsh.i.valid.eq(passing & rotate),
                walsh.i.payload.value.eq(output),
                walsh.o.ready.eq(pipe.advance),
            ]
            values.append(Mux(rotate, Mux(negative[left], -rotated, rotated), output))

        last = left == dim - 1
        m.d.comb += self.task.ready.eq(pipe.moving & last)
        with m.If(self.i.valid & self.i.ready & self.i.payload.last):
            m.d.sync += complete.eq(1)
        with m.If(pipe.moving):
            m.d.sync += left.eq(Mux(last, 0, left + 1))
            with m.If(last):
                m.d.sync += complete.eq(0)

        point = config.scale_fraction_bits - config.output_fraction_bits
        growth = config.rotation_size.bit_length() - 1
        exponent = self.task.payload.value_exponent + point - Mux(rotate, growth, 0)
        s1 = pipe.stage(values=values, exponent=exponent, last=last)
        pipe.finish(values=s1.values, exponent=s1.exponent, last=s1.last)
        return m
