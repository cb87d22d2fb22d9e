"""Query conditioner: rotates 16-bit queries and rounds them to the width of the lanes."""

from __future__ import annotations

from amaranth.hdl import Array, C, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig, signed_bits
from rtl.fixed_point import rshift_round
from rtl.hadamard import Walsh, negative_signs
from rtl.layouts import (
    host_query_layout,
    query_exponents_layout,
    query_layout,
    query_task_layout,
)
from rtl.pipeline import Pipeline

__all__ = ["QueryConditioner"]

_HOST_BITS = signed_bits(VECTOR_MAX)


class QueryConditioner(wiring.Component):
    """Compute ``rshift_round(z, shift)``, z = H (s * q) or q, with the smallest shift that fits.

    A head's shift depends on its largest element. So a job's D elements of every head are kept
    until all have come, in shift registers behind one transform per head. One job is conditioned at
    a time, while the engine attends with the queries of the job before.

    `exponents` is offered `measure_latency` cycles after the first element came, without gaps. The
    first query comes `LATENCY` cycles after the transfer of `exponents`, then one per cycle.

    Attributes
    ----------
    task : stream In, `query_task_layout`, one transfer per job
    i : stream In, `host_query_layout`: D transfers per job
    exponents : stream Out, `query_exponents_layout`, one transfer per job, before its queries
    o : stream Out, `query_layout`: D transfers per job
    """

    LATENCY = 3

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "task": In(stream.Signature(query_task_layout(config))),
                "i": In(stream.Signature(host_query_layout(config))),
                "exponents": Out(stream.Signature(query_exponents_layout(config))),
                "o": Out(stream.Signature(query_layout(config))),
            }
        )

    def measure_latency(self, rotate: bool) -> int:
        """Return the cycles from a job's first element, D elements in a row, to its exponents."""
        transform = Walsh(self._config, _HOST_BITS).latency if rotate else 0
        return self._config.head_dim + transform + 1

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config, dim = self._config, self._config.head_dim
        rotate = Signal()
        taken = Signal(range(dim + 1))  # elements that have come in
        kept = Signal(range(dim))  # elements that have entered the shift registers, or left them
        filling = Signal()
        entering = Signal()  # elements enter the shift registers
        leaving = Signal()
        sending = Signal()

        pipe = Pipeline(m, sending, self.o)
        m.d.comb += leaving.eq(sending & pipe.advance)
        negative = Array(C(bit, 1) for bit in negative_signs(dim))
        transforms, heads = [], []
        for g in range(config.query_group):
            m.submodules[f"walsh_{g}"] = walsh = Walsh(config, _HOST_BITS)
            transforms.append(walsh)
            value = self.i.payload.values[g]
            symmetric = Signal(signed(_HOST_BITS), name=f"symmetric_{g}")
            m.d.comb += [
                symmetric.eq(Mux(value == -VECTOR_MAX - 1, -VECTOR_MAX, value)),
                walsh.i.payload.value.eq(Mux(negative[taken], -symmetric, symmetric)),
                walsh.i.valid.eq(self.i.valid & self.i.ready & rotate),
                walsh.o.ready.eq(1),
            ]
            z = Signal.like(walsh.o.payload.value, name=f"z_{g}")
            m.d.comb += z.eq(Mux(rotate, walsh.o.payload.value, symmetric))
            heads.append(self._head(m, g, z, entering, leaving))
        moved = self.i.valid & self.i.ready
        m.d.comb += [
            self.i.ready.eq(filling & (taken != dim) & (~rotate | transforms[0].i.ready)),
            entering.eq(Mux(rotate, transforms[0].o.valid, moved)),
        ]
        with m.If(moved):
            m.d.sync += taken.eq(taken + 1)
        with m.If(entering | leaving):
            m.d.sync += kept.eq(Mux(kept == dim - 1, 0, kept + 1))

        exponents = self.exponents.payload.query_exponent
        lowest = -1 << (config.query_exponent_bits - 1)
        with m.FSM():
            with m.State("TASK"):
                m.d.comb += self.task.ready.eq(1)
                with m.If(self.task.valid):
                    m.d.sync += [
                        rotate.eq(self.task.payload.rotate),
                        exponents.eq(self.task.payload.query_exponent),
                        taken.eq(0),
                        *(seen.eq(0) for _, seen, _ in heads),
                    ]
                    m.next = "FILL"
            with m.State("FILL"):
                m.d.comb += filling.eq(1)
                with m.If(entering & (kept == dim - 1)):
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                for exponent, (_, seen, shift) in zip(exponents, heads, strict=True):
                    fitting = config.query_bits - 1
                    smallest = Signal.like(shift)
                    for bit in range(fitting, len(seen)):
                        with m.If(seen[bit]):
                            m.d.comb += smallest.eq(bit + 1 - fitting)
                    lowered = exponent - smallest
                    m.d.sync += [
                        shift.eq(smallest),
                        exponent.eq(Mux(lowered < lowest, lowest, lowered)),
                    ]
                m.next = "EXPONENTS"
            with m.State("EXPONENTS"):
                m.d.comb += self.exponents.valid.eq(1)
                with m.If(self.exponents.ready):
                    m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += sending.eq(1)
                with m.If(leaving & (kept == dim - 1)):
                    m.next = "TASK"

        rounded = pipe.stage(values=[rshift_round(element, shift) for element, _, shift in heads])
        limit = config.query_max
        limited = pipe.stage(
            values=[
                Mux(value > limit, limit, Mux(value < -limit, -limit, value))
                for value in rounded.values
            ]
        )
        pipe.finish(values=limited.values)
        return m

    def _head(
        self, m: Module, g: int, z: Signal, entering: Signal, leaving: Signal
    ) -> tuple[Signal, Signal, Signal]:
        """Make a head's shift register; return its oldest element, ORed magnitudes, and shift."""
        elements = [
            Signal.like(z, name=f"element_{g}_{d}", reset_less=True)
            for d in range(self._config.head_dim)
        ]
        with m.If(entering | leaving):
            m.d.sync += [a.eq(b) for a, b in zip(elements, [*elements[1:], z], strict=True)]
        # the longest magnitude is as long as all of them ORed together
        seen = Signal(len(z) - 1, name=f"seen_{g}", reset_less=True)
        with m.If(entering):
            m.d.sync += seen.eq(seen | Mux(z < 0, -z, z))
        shift = Signal(range(len(z)), name=f"shift_{g}", reset_less=True)
        return elements[0], seen, shift
