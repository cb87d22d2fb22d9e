"""The attention engine: one KV head and its group of query heads at a time.

An Amaranth component, for use in your own design or for conversion to Verilog::

    >>> from kvtq_hw.contract.config import load_config
    >>> from rtl.blocks import emit_block
    >>> sorted(Engine(load_config("tiny")).signature.members)
    ['counters', 'job', 'keys', 'output', 'query', 'scores', 'value_exponent', 'values']
    >>> "module kvtq_engine(" in emit_block("engine", load_config("tiny"))
    True
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.key_lanes import KeyLanes
from rtl.layouts import (
    counters_layout,
    job_layout,
    key_input_layout,
    output_layout,
    query_layout,
    score_tap_layout,
    value_exponent_layout,
    value_input_layout,
)
from rtl.normalizer import Normalizer
from rtl.online_softmax import OnlineSoftmax
from rtl.plane_scaler import PlaneScaler
from rtl.query_buffer import QueryBuffer
from rtl.sequencer import Sequencer
from rtl.value_lanes import ValueLanes
from rtl.weight_scaler import WeightScaler

__all__ = ["Engine"]

#: Fewest bits of a counter that every event clocks.
_LOW_BITS = 4


class Engine(wiring.Component):
    """Compute attention of G query heads over one KV head, as docs/contract.md defines it.

    The cache format decides how key lanes and value lanes multiply: they select for trits, and have
    multipliers for the comparison engines' integers. All other blocks are the same.

    Steady state is one plane slice per cycle; `cycle_model` gives the cycles per job.

    Attributes
    ----------
    job : stream In, `job_layout`
    value_exponent : stream In, `value_exponent_layout`, one transfer per job, needed before the
        job's first value slice
    query : stream In, one element of every head, D transfers per job
    keys, values : stream In, `key_input_layout` and `value_input_layout`
    output : stream Out, `output_layout`, D transfers per job
    scores : Out, `score_tap_layout`, each score of every job, for a block that watches them
    counters : Out, `counters_layout`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "job": In(stream.Signature(job_layout(config))),
                "value_exponent": In(stream.Signature(value_exponent_layout(config))),
                "query": In(stream.Signature(query_layout(config))),
                "keys": In(stream.Signature(key_input_layout(config))),
                "values": In(stream.Signature(value_input_layout(config))),
                "output": Out(stream.Signature(output_layout(config))),
                "scores": Out(score_tap_layout(config)),
                "counters": Out(counters_layout()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.query_buffer = query_buffer = QueryBuffer(config)
        m.submodules.key_lanes = key_lanes = KeyLanes(config)
        m.submodules.value_lanes = value_lanes = ValueLanes(config)
        m.submodules.plane_scaler = plane_scaler = PlaneScaler(config)
        m.submodules.online_softmax = online_softmax = OnlineSoftmax(config)
        m.submodules.weight_scaler = weight_scaler = WeightScaler(config)
        m.submodules.normalizer = normalizer = Normalizer(config)

        connect(m, flipped(self.job), sequencer.jobs)
        connect(m, flipped(self.value_exponent), sequencer.value_exponents)
        connect(m, flipped(self.keys), sequencer.keys)
        connect(m, flipped(self.values), sequencer.values)
        connect(m, flipped(self.query), query_buffer.i)
        key_slices = sequencer.key_slices
        m.d.comb += [
            query_buffer.start.eq(sequencer.query_start),
            sequencer.query_full.eq(query_buffer.full),
            query_buffer.slice.eq(key_slices.payload.tag.slice),
            key_lanes.i.valid.eq(key_slices.valid),
            key_slices.ready.eq(key_lanes.i.ready),
            key_lanes.i.payload.elements.eq(key_slices.payload.elements),
            key_lanes.i.payload.tag.eq(key_slices.payload.tag),
            key_lanes.i.payload.queries.eq(query_buffer.queries),
            plane_scaler.query_exponent.eq(sequencer.query_exponent),
            weight_scaler.value_exponent.eq(sequencer.value_exponent),
        ]
        connect(m, sequencer.starts, online_softmax.starts)
        connect(m, key_lanes.o, plane_scaler.i)
        connect(m, plane_scaler.o, online_softmax.i)
        connect(m, online_softmax.o, weight_scaler.weights)
        connect(m, sequencer.value_slices, weight_scaler.slices)
        connect(m, weight_scaler.o, value_lanes.i)
        connect(m, online_softmax.sums, normalizer.sums)
        connect(m, value_lanes.o, normalizer.i)
        connect(m, normalizer.o, flipped(self.output))

        scores = plane_scaler.o
        m.d.comb += [
            self.scores.valid.eq(scores.valid & scores.ready),
            self.scores.scores.eq(scores.payload.scores),
            self.scores.job_end.eq(scores.payload.job_end),
        ]

        self._count(m, sequencer.starved, scores)
        return m

    def _count(self, m: Module, starved: Value, scores: stream.Interface) -> None:
        """Count events, one cycle late."""
        # a second job is taken before the first has left, and a third while both are in flight
        in_flight = Signal(range(4))
        enters = self.job.valid & self.job.ready
        leaves = self.output.valid & self.output.ready & self.output.payload.last
        m.d.sync += in_flight.eq(in_flight + enters - leaves)

        def count(name: str, amount: Value) -> None:
            # register the event first: it lies at the end of the long paths of ready
            event = Signal.like(amount, name=f"{name}_event")
            m.d.sync += event.eq(amount)
            # the upper bits have an enable of their own: they seldom change
            low = max(_LOW_BITS, len(event))
            lower, upper = self.counters[name][:low], self.counters[name][low:]
            total = lower + event
            with m.If(event != 0):
                m.d.sync += lower.eq(total)
            with m.If(total[low]):
                m.d.sync += upper.eq(upper + 1)

        count("busy_cycles", enters | (in_flight != 0))
        count("key_slices", self.keys.valid & self.keys.ready)
        count("value_slices", self.values.valid & self.values.ready)
        count("starved_cycles", starved)
        count("stalled_cycles", self.output.valid & ~self.output.ready)
        saturated = scores.payload.saturated & (scores.valid & scores.ready).replicate(
            self._config.query_group
        )
        count("saturated_scores", sum((bit for bit in saturated), start=Const(0)))
