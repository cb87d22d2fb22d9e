"""Sequencer: takes jobs, and lets key and value slices pass block by block."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import (
    job_layout,
    key_input_layout,
    key_slice_layout,
    start_layout,
    value_exponent_layout,
    value_input_layout,
    value_slice_layout,
)

__all__ = ["Sequencer"]


class Sequencer(wiring.Component):
    """Pass a job in order: queries, K block 0, then K block i+1 before V block i, the last V block.

    At most one slice passes per cycle, combinationally. A job is taken when the last value slice of
    the previous job has passed; its queries load while the previous job's outputs leave.

    Attributes
    ----------
    jobs : stream In, `job_layout`
    value_exponents : stream In, `value_exponent_layout`, one per job: taken any time after the job;
        the job's first value slice waits for the exponent
    keys, values : stream In, `key_input_layout` and `value_input_layout`
    key_slices : stream Out, `key_slice_layout`: numbered, with the ends of block and job marked
    value_slices : stream Out, `value_slice_layout`
    starts : stream Out, `start_layout`, one per job, from the cycle after the job's transfer on
    query_start : Out, pulse: load the queries
    query_full : In, the queries are loaded
    query_exponent, value_exponent : Out, of the current job
    starved : Out, a slice could pass but its stream has none
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
        super().__init__(
            {
                "jobs": In(stream.Signature(job_layout(config))),
                "value_exponents": In(stream.Signature(value_exponent_layout(config))),
                "keys": In(stream.Signature(key_input_layout(config))),
                "values": In(stream.Signature(value_input_layout(config))),
                "key_slices": Out(stream.Signature(key_slice_layout(config))),
                "value_slices": Out(stream.Signature(value_slice_layout(config))),
                "starts": Out(stream.Signature(start_layout(config))),
                "query_start": Out(1),
                "query_full": In(1),
                "query_exponent": Out(exponents),
                "value_exponent": Out(unsigned(config.scale_exponent_bits)),
                "starved": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        last_token = Signal(config.token_bits)
        first_block = Signal()  # no value block has a turn before the second key block
        keys_left = Signal()
        exponent_known = Signal(init=1)

        m.d.comb += self.value_exponents.ready.eq(~exponent_known)
        with m.If(self.value_exponents.valid & self.value_exponents.ready):
            m.d.sync += [
                self.value_exponent.eq(self.value_exponents.payload.value_exponent),
                exponent_known.eq(1),
            ]

        # the softmax takes the start of a job before the job's first value slice can pass
        with m.If(self.starts.ready):
            m.d.sync += self.starts.valid.eq(0)

        m.submodules.key_place = key_place = _Place(config)
        m.submodules.value_place = value_place = _Place(config)
        tag = self.key_slices.payload.tag
        value_slice = self.value_slices.payload
        for place, source, scale in (
            (key_place, self.keys, tag),
            (value_place, self.values, value_slice),
        ):
            m.d.comb += [
                place.last_token.eq(last_token),
                place.last.eq(source.payload.last),
                place.moved.eq(source.valid & source.ready),
                scale.slice.eq(place.slice),
                *(
                    scale[field].eq(source.payload[field])
                    for field in ("fraction", "exponent", "unit", "last")
                ),
            ]
        m.d.comb += [
            self.key_slices.payload.elements.eq(self.keys.payload.elements),
            value_slice.elements.eq(self.values.payload.elements),
            tag.block_end.eq(key_place.block_end),
            tag.job_end.eq(key_place.job_end),
        ]

        with m.FSM():
            with m.State("IDLE"):
                job = self.jobs.payload
                m.d.comb += [
                    self.jobs.ready.eq(~self.starts.valid),
                    self.query_start.eq(self.jobs.valid & self.jobs.ready),
                ]
                with m.If(self.query_start):
                    m.d.sync += [
                        last_token.eq(job.last_token),
                        self.query_exponent.eq(job.query_exponent),
                        self.starts.payload.sink_maximum.eq(job.sink_maximum),
                        self.starts.payload.sink_weight.eq(job.sink_weight),
                        self.starts.valid.eq(1),
                        exponent_known.eq(0),
                        first_block.eq(1),
                    ]
                    m.next = "QUERY"
            with m.State("QUERY"):
                with m.If(self.query_full):
                    m.next = "KEYS"
            with m.State("KEYS"):
                m.d.comb += [
                    self.key_slices.valid.eq(self.keys.valid),
                    self.keys.ready.eq(self.key_slices.ready),
                    self.starved.eq(self.key_slices.ready & ~self.keys.valid),
                ]
                with m.If(key_place.block_done):
                    m.d.sync += [first_block.eq(0), keys_left.eq(~key_place.job_end)]
                    with m.If(~first_block | key_place.job_end):
                        m.next = "VALUES"
            with m.State("VALUES"):
                m.d.comb += [
                    self.value_slices.valid.eq(self.values.valid & exponent_known),
                    self.values.ready.eq(self.value_slices.ready & exponent_known),
                    self.starved.eq(
                        self.value_slices.ready & ~(self.values.valid & exponent_known)
                    ),
                ]
                with m.If(value_place.block_done):
                    with m.If(value_place.job_end):
                        m.next = "IDLE"
                    with m.Elif(keys_left):
                        m.next = "KEYS"
        return m


class _Place(wiring.Component):
    """Track the slice at the head of a stream: its number, its token, its block."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "last_token": In(config.token_bits),
                "last": In(1),
                "moved": In(1),
                "slice": Out(range(config.slices)),
                "block_end": Out(1),
                "job_end": Out(1),
                "block_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        token = Signal(config.token_bits)
        m.d.comb += [
            self.job_end.eq(token == self.last_token),
            self.block_end.eq(((token & (config.block - 1)) == config.block - 1) | self.job_end),
        ]
        with m.If(self.moved):
            m.d.sync += self.slice.eq(self.slice + 1)
            with m.If(self.slice == config.slices - 1):
                m.d.sync += self.slice.eq(0)
                with m.If(self.last):
                    m.d.sync += token.eq(token + 1)
                    m.d.comb += self.block_done.eq(self.block_end)
                    with m.If(self.job_end):
                        m.d.sync += token.eq(0)
        return m
