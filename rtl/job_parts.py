"""The parts of a job: what each block gets of the job, and when the part is offered.

The golden twin is `golden.scheduler.job_parts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import append_task_layout, start_layout
from rtl.memory_layouts import APPEND_BITS, place_layout
from rtl.streams import Fork, Queue

__all__ = ["AppendPort", "JobParts", "Promotion", "attend_layout"]


class AppendPort(wiring.Signature):
    """Port between the scheduler and the blocks that append to one side, keys or values.

    Directions are the scheduler's. Both streams have one transfer per record; `cancel` withdraws
    their offers.

    Attributes
    ----------
    tasks : stream Out, `append_task_layout`, to the append path
    places : stream Out, `place_layout`, to the record writer
    written : In, pulse: a record is in memory
    appended : Out, number of appends whose records are all in memory, modulo ``2**APPEND_BITS``,
        for the reader's fences
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(
            {
                "tasks": Out(stream.Signature(append_task_layout(config))),
                "places": Out(stream.Signature(place_layout(config))),
                "written": In(1),
                "appended": Out(APPEND_BITS),
            }
        )


def attend_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of the core's part of a job, without its queries' exponents."""
    return data.StructLayout({"last_token": config.token_bits, **start_layout(config).members})


class Promotion:
    """What a job has found out about its head's anchors; zeros for a job without anchors.

    Attributes
    ----------
    promoted : Signal, the token that leaves the window becomes an anchor
    before, after : Signal, number of anchors before the job, and with a new one
    """

    def __init__(self, config: EngineConfig) -> None:
        tokens = range(config.max_context + 1)
        self.promoted = Signal()
        self.before = Signal(tokens, name="anchors_before")
        self.after = Signal(tokens, name="anchors_after")


class JobParts:
    """Fork a job to the scheduler's ports; each part is taken in its own time.

    Parameters
    ----------
    m : Module
    ports : rtl.scheduler.Scheduler
    job : view of `rtl.control.descriptor_layout`
    anchors : Promotion, constant while parts are offered
    offered : The job's parts are offered, until each is taken.
    renew : In the next cycle another job comes, and none of its parts has been taken.
    """

    def __init__(
        self,
        m: Module,
        ports: Any,
        job: data.View,
        anchors: Promotion,
        *,
        offered: Value,
        renew: Value,
    ) -> None:
        self._m = m
        self._ports = ports
        self._job = job
        self._anchors = anchors
        self._fork = Fork(m, offered, renew)

    @property
    def taken(self) -> Value:
        """Whether every part has been taken."""
        return self._fork.taken

    def offer_attend(self, appends: Value) -> None:
        """Offer the parts for attention, and the value exponent's task.

        Parameters
        ----------
        appends : Number of appends handed out, the job's included.
        """
        m, job, parts, ports = self._m, self._job, self._fork, self._ports
        parts.to("queries", ports.queries, times=job.attend)
        parts.to("attends", ports.attends, times=job.attend)
        parts.to("exponents", ports.exponents, times=job.append | job.attend)
        # the reader needs a job until its last request is sent: it gets a copy of its own
        copy = Queue(ports.reads.payload.shape(), 1, buffered=True)
        m.submodules.reads_copy = ResetInserter(ports.restart)(copy)
        parts.to("reads", copy.i, times=job.attend)
        read, exponent = copy.i.payload, ports.exponents.payload
        m.d.comb += [
            ports.reads.valid.eq(copy.o.valid & ~ports.cancel),
            ports.reads.payload.eq(copy.o.payload),
            copy.o.ready.eq(ports.reads.ready & ports.reads.valid),
            ports.queries.payload.rotate.eq(job.rotate),
            ports.queries.payload.query_exponent.eq(job.query_exponent),
            ports.attends.payload.last_token.eq(job.tokens - 1),
            ports.attends.payload.sink_maximum.eq(job.sink_maximum),
            ports.attends.payload.sink_weight.eq(job.sink_weight),
            exponent.table.eq(job.table),
            exponent.first.eq(job.first),
            exponent.floor.eq(job.value_exponent),
            exponent.records.eq(_records(job)),
            exponent.attend.eq(job.attend),
            exponent.rotate.eq(job.rotate),
            read.appends.eq(appends),
            read.residual.eq(job.residual),
        ]
        for field in ("tier_digits", "key_digits", "value_digits", "key", "value"):
            m.d.comb += read[field].eq(job[field])
        for field in ("window_tokens", "window_start"):
            m.d.comb += read[field].eq(job[field])
        m.d.comb += [
            read.sink_tokens.eq(job.sink_tokens + self._anchors.after),
            read.body_tokens.eq(job.body_tokens - self._anchors.after),
            read.body_slot.eq(job.body_slot - self._anchors.before),
            read.new_anchor.eq(self._anchors.promoted),
        ]

    def offer_hits(self) -> None:
        """Offer the part of the anchors: which of the job's scores give hits."""
        m, job, hits = self._m, self._job, self._ports.hits.payload
        self._fork.to("hits", self._ports.hits, times=job.attend)
        m.d.comb += [
            hits.counted.eq(job.anchors != 0),
            hits.settled_tokens.eq(job.sink_tokens + job.body_tokens),
        ]
        for field in ("table", "sink_tokens", "window_tokens", "window_start"):
            m.d.comb += hits[field].eq(job[field])

    def offer_fetch(self, appends_before: Value) -> None:
        """Offer the fetch of the token that leaves the window.

        Parameters
        ----------
        appends_before : Number of appends handed out before the job.
        """
        job, fetch = self._job, self._ports.fetches.payload
        self._fork.to("fetches", self._ports.fetches, times=job.leaving)
        self._m.d.comb += [
            fetch.key_window.eq(job.key.window),
            fetch.value_window.eq(job.value.window),
            fetch.slot.eq(job.window_slot),
            fetch.digits.eq(job.tier_digits),
            fetch.appends.eq(appends_before),
        ]

    def offer_appends(self, overwritable: Value) -> None:
        """Offer each side's records: the new token's first, then that of the leaving token.

        Parameters
        ----------
        overwritable : The records that the appends overwrite have been read.
        """
        job, ports = self._job, self._ports
        for side in (
            _Side("key", ports.key, job.key, job.key_digits, job.key_constants, job.centre, 0),
            _Side("value", ports.value, job.value, job.value_digits, job.value_constants, 0, 1),
        ):
            self._offer_tasks(side)
            self._offer_places(side, overwritable)

    def _offer_tasks(self, side: _Side) -> None:
        """Tell an append path how the records of its side are quantized."""
        m, job, tasks = self._m, self._job, side.port.tasks
        done = self._fork.to(f"{side.name}_tasks", tasks, times=_records(job))
        leaving = done == 1
        tier = self._in_tier(leaving)
        code = tasks.payload.code
        m.d.comb += [
            tasks.payload.leaving.eq(leaving),
            tasks.payload.rotate.eq(job.rotate),
            tasks.payload.centre.eq(side.centre),
            code.table.eq(job.table),
            code.unit_first.eq(side.unit_first),
            code.planes.eq(Mux(tier, job.tier_digits, side.digits)),
            code.residual.eq(~tier & job.residual),
            code.absmean.eq(tier | job.absmean),
            code.feedback.eq(~tier & job.feedback),
            code.constants.eq(side.constants),
        ]
        with m.If(tier):
            m.d.comb += code.constants[0].eq(job.tier_constant)

    def _offer_places(self, side: _Side, overwritable: Value) -> None:
        """Tell the record writer where the records of a side go."""
        m, job, places = self._m, self._job, side.port.places
        done = self._fork.to(f"{side.name}_places", places, times=_records(job), when=overwritable)
        leaving = done == 1
        tier = self._in_tier(leaving)
        place = places.payload
        m.d.comb += [
            place.planes.eq(Mux(tier, job.tier_digits, side.digits)),
            place.residual.eq(~tier & job.residual),
            place.base.eq(side.regions.body),
            place.slot.eq(job.body_slot - self._anchors.before),
        ]
        with m.If(~leaving & (job.window_tokens != 0)):
            m.d.comb += [place.base.eq(side.regions.window), place.slot.eq(job.window_slot)]
        with m.Elif(tier):  # a new sink, or a new anchor
            m.d.comb += [
                place.base.eq(side.regions.sinks),
                place.slot.eq(job.sink_tokens + self._anchors.after - 1),
            ]

    def _in_tier(self, leaving: Value) -> Value:
        """Return whether a record has the tiers' digits.

        Those are records in the window, of anchors, and in the sinks of a job without a window.
        """
        job = self._job
        newest = (job.window_tokens != 0) | (job.body_tokens == 0)
        return Mux(leaving, self._anchors.promoted, newest)


class _Side(NamedTuple):
    """Append port of one side, with the fields of a descriptor for that side."""

    name: str
    port: Any
    regions: data.View
    digits: Value
    constants: data.View
    centre: Value | int
    unit_first: int


def _records(job: data.View) -> Value:
    """Return the number of records per side that a job appends."""
    return Mux(job.append, 1 + job.leaving, 0)
