"""Scheduler: splits job descriptors into parts, hands the parts out, and reports how jobs end."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import JobStatus
from rtl.anchors import DecisionPort
from rtl.axi import Response
from rtl.control import descriptor_layout, job_end_layout
from rtl.job_parts import AppendPort, JobParts, Promotion, attend_layout
from rtl.layouts import hit_task_layout, query_task_layout, value_exponent_task_layout
from rtl.memory_layouts import APPEND_BITS, fetch_layout, read_job_layout
from rtl.streams import Queue

__all__ = ["IN_FLIGHT", "Scheduler"]

#: Jobs in flight: one whose outputs leave, one in the core, one being handed out, one to spare.
IN_FLIGHT = 4


class Scheduler(wiring.Component):
    """Hand out one job at a time, while earlier jobs may still be in the core.

    The parts of a job are queries, read, core, value exponent, hits, fetch of the leaving token,
    and for each side the append's tasks and places. Each block takes its part as soon as it can.
    The next job is looked at when all parts are taken. The core takes its part when the job before
    has passed its last value slice: so one job is conditioned, fetched and appended ahead.

    Order in memory. The reader waits until the records of a job's own append are in memory
    (`AppendPort.appended`). An append overwrites only records that have been read: the writer gets
    places when every earlier job has been read. The new token takes the slot of the token that
    leaves the window, so its place also waits until the leaving token has been fetched.

    Anchors. A job with anchors learns how many its head has, and whether its leaving token becomes
    one, before it is handed out; the number is looked up while the job is taken, so that this costs
    no cycle unless `rtl.anchors.Anchors` must wait. Decisions are carried out when a job is handed
    out, and never twice. A configuration without `anchor_slots` has neither port.

    Errors. An invalid descriptor ends its job with a status; the job's vectors are taken from the
    host and discarded. A memory error ends all jobs in flight with the error's status: reads and
    writes are drained, vectors that the host still owes are discarded, a job whose outputs have
    begun to leave gives all of them, a job that is complete by then ends well, and every block
    starts anew. A descriptor that was taken but not handed out is looked at afterwards.

    Attributes
    ----------
    jobs : stream In, `descriptor_layout`
    done : stream Out, `job_end_layout`, one per job in the order of the jobs
    queries, reads, attends, exponents, fetches : streams Out, a job's parts; withdrawn by `cancel`
    hits : stream Out, `hit_task_layout`, a job's part for the anchors
    decision : `DecisionPort`
    key, value : `AppendPort`, a job's parts for the append of either side
    job_read, fetch_read : In, pulses of the reader
    attended : In, pulse: a job's last output has left
    read_error, write_error : In, responses, OKAY if none
    idle : In, reader and writer have nothing to do
    vector_taken, query_taken : In, pulses: the host gave an element
    vectors_owed, queries_owed : Out, the host owes elements of jobs that were handed out
    discard : Out, elements from the host are taken and discarded
    output_begun : In, a job's outputs have begun to leave
    cancel : Out, to reader and writer
    restart : Out, pulse: all other blocks start anew
    appending : Out, an append is in flight
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        parts = {
            "queries": query_task_layout(config),
            "reads": read_job_layout(config),
            "attends": attend_layout(config),
            "exponents": value_exponent_task_layout(config),
            "fetches": fetch_layout(config),
        }
        with_anchors: dict[str, Any] = {}
        if config.anchor_slots:
            parts["hits"] = hit_task_layout(config)
            with_anchors["decision"] = Out(DecisionPort(config))
        inputs = ("job_read", "fetch_read", "attended", "idle", "vector_taken", "query_taken")
        outputs = ("vectors_owed", "queries_owed", "discard", "cancel", "restart", "appending")
        super().__init__(
            {
                "jobs": In(stream.Signature(descriptor_layout(config))),
                "done": Out(stream.Signature(job_end_layout())),
                **{name: Out(stream.Signature(layout)) for name, layout in parts.items()},
                **with_anchors,
                "key": Out(AppendPort(config)),
                "value": Out(AppendPort(config)),
                "read_error": In(Response),
                "write_error": In(Response),
                **dict.fromkeys((*inputs, "output_begun"), In(1)),
                **dict.fromkeys(outputs, Out(1)),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        job = Signal(descriptor_layout(config))
        problem = self._problem(m, job)
        taking = Signal()  # the next descriptor is taken, if there is one
        enter = Signal()  # the descriptor is valid: the job is handed out
        refuse = Signal()  # the descriptor is invalid

        # --- counts of started and finished appends and reads -------------------------------------
        # the counters wrap far above the number of jobs in flight
        appends = Signal(APPEND_BITS)  # appends handed out, the current job's included
        appends_before = Signal(APPEND_BITS)
        reads = Signal(APPEND_BITS)
        reads_before = Signal(APPEND_BITS)
        reads_done = Signal(APPEND_BITS)
        fetched = Signal()
        with m.If(enter):
            m.d.sync += [
                appends_before.eq(appends),
                appends.eq(appends + job.append),
                reads_before.eq(reads),
                reads.eq(reads + job.attend),
                fetched.eq(~job.leaving),
            ]
        with m.If(self.job_read):
            m.d.sync += reads_done.eq(reads_done + 1)
        with m.If(self.fetch_read):
            m.d.sync += fetched.eq(1)
        m.d.comb += self.appending.eq(
            (self.key.appended != appends) | (self.value.appended != appends)
        )
        self._count_debts(m, enter | refuse, job)
        anchors, decided = Promotion(config), Value.cast(1)
        if config.anchor_slots:
            decided = self._decide(m, job, anchors, taking, enter)

        # --- the job's parts ----------------------------------------------------------------------
        handing = Signal()  # some parts have not been taken
        offered, renew = handing & ~self.cancel, enter | self.restart
        parts = JobParts(m, self, job, anchors, offered=offered, renew=renew)
        parts.offer_attend(appends)
        if config.anchor_slots:
            parts.offer_hits()
        parts.offer_fetch(appends_before)
        parts.offer_appends(overwritable=(reads_done == reads_before) & fetched)
        for name, port in (("key", self.key), ("value", self.value)):
            self._count_appends(m, name, port, enter & job.append, job.leaving)

        # --- jobs in flight -----------------------------------------------------------------------
        in_flight = data.StructLayout({"append": 1, "attend": 1, "status": JobStatus})
        m.submodules.flight = flight = Queue(in_flight, IN_FLIGHT, buffered=True)
        oldest = flight.o.payload
        attends_left = Signal(range(IN_FLIGHT + 1))  # jobs whose outputs have left
        appends_ended = Signal(APPEND_BITS)
        appended = (self.key.appended != appends_ended) & (self.value.appended != appends_ended)
        served = (~oldest.append | appended) & (~oldest.attend | (attends_left != 0))
        failure = Signal(JobStatus)
        failing = Signal()  # jobs in flight end with `failure`
        m.d.comb += [
            flight.i.payload.append.eq(job.append),
            flight.i.payload.attend.eq(job.attend),
            flight.i.payload.status.eq(problem),
            flight.i.valid.eq(enter | refuse),
            self.done.valid.eq(
                flight.o.valid & (failing | (oldest.status != JobStatus.OK) | served)
            ),
            self.done.payload.status.eq(Mux(failing, failure, oldest.status)),
            flight.o.ready.eq(self.done.valid & self.done.ready),
        ]
        ends_well = flight.o.ready & (oldest.status == JobStatus.OK) & ~failing
        m.d.sync += attends_left.eq(attends_left + self.attended - (ends_well & oldest.attend))
        with m.If(ends_well & oldest.append):
            m.d.sync += appends_ended.eq(appends_ended + 1)
        with m.If(self.restart):
            counts = appends, reads, reads_done, attends_left, appends_ended
            m.d.sync += [handing.eq(0), *(count.eq(0) for count in counts)]

        error = (self.read_error != Response.OKAY) | (self.write_error != Response.OKAY)
        held = Signal()  # a descriptor was taken, and waits for the end of an abort
        owed = self.vectors_owed | self.queries_owed
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += [self.jobs.ready.eq(~error), taking.eq(1)]
                with m.If(error):
                    m.next = "FAIL"
                with m.Elif(self.jobs.valid):
                    m.d.sync += [job.eq(self.jobs.payload), held.eq(1)]
                    m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(error):
                    m.next = "FAIL"
                with m.Elif(flight.i.ready & (problem == JobStatus.OK)):
                    m.d.comb += enter.eq(decided)
                with m.Elif(flight.i.ready & ~owed):
                    m.d.comb += refuse.eq(1)
                    m.d.sync += held.eq(0)
                    m.next = "REFUSE"
                with m.If(enter):
                    m.d.sync += [held.eq(0), handing.eq(1)]
                    m.next = "HAND_OUT"
            with m.State("HAND_OUT"):
                with m.If(error):
                    m.next = "FAIL"
                with m.Elif(parts.taken):
                    m.d.sync += handing.eq(0)
                    m.next = "TAKE"
            with m.State("REFUSE"):
                m.d.comb += self.discard.eq(1)
                with m.If(~owed):
                    m.next = "TAKE"
            with m.State("FAIL"):
                read_status = Mux(
                    self.read_error == Response.EXOKAY,
                    JobStatus.READ_TRUNCATED,
                    JobStatus.READ_ERROR,
                )
                m.d.sync += failure.eq(
                    Mux(self.read_error != Response.OKAY, read_status, JobStatus.WRITE_ERROR)
                )
                m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += [self.cancel.eq(1), self.discard.eq(1)]
                with m.If(self.idle & ~owed & ~self.output_begun & ~self.done.valid):
                    m.d.comb += self.restart.eq(1)
                    m.next = "REPORT"
            with m.State("REPORT"):
                m.d.comb += failing.eq(1)
                with m.If(~flight.o.valid):
                    m.next = "TAKE"
                    with m.If(held):
                        m.next = "CHECK"
        return m

    def _decide(
        self, m: Module, job: data.View, anchors: Promotion, taking: Value, enter: Value
    ) -> Value:
        """Keep the decision of a job that enters; return whether it is known, if it is needed."""
        port, with_anchors = self.decision, job.anchors != 0
        looked_up = self.jobs.payload  # one cycle before its decision is looked at
        m.d.comb += [
            port.table.eq(Mux(taking, looked_up.table, job.table)),
            port.slot.eq(Mux(taking, looked_up.window_slot, job.window_slot)),
            port.enters.eq(
                Mux(
                    taking,
                    looked_up.append & (looked_up.window_tokens != 0),
                    job.append & (job.window_tokens != 0),
                )
            ),
            port.leaving.eq(job.leaving),
            port.anchors.eq(job.anchors),
            port.threshold.eq(job.anchor_threshold),
            port.new.eq(job.body_tokens == job.leaving),
            port.taken.eq(enter & with_anchors),
        ]
        with m.If(enter):
            m.d.sync += [
                anchors.promoted.eq(with_anchors & port.promoted),
                anchors.before.eq(Mux(with_anchors, port.before, 0)),
                anchors.after.eq(Mux(with_anchors, port.before + port.promoted, 0)),
            ]
        return port.known | ~with_anchors

    def _problem(self, m: Module, job: data.View) -> Signal:
        """Return the status of a descriptor: OK, or what is wrong with it."""
        config = self._config
        problem = Signal(JobStatus)
        tiers = Signal(34)
        m.d.comb += tiers.eq(job.sink_tokens + job.body_tokens + job.window_tokens)
        digits = [job.tier_digits, job.key_digits, job.value_digits]
        bad = [
            tiers != job.tokens,
            *((number == 0) | (number > config.max_planes) for number in digits),
            job.table >= config.table_heads,
            job.residual & job.feedback,
            ~job.residual & ~job.absmean,
            (job.window_tokens != 0) & (job.window_start >= job.window_tokens),
            (job.window_tokens != 0) & (job.window_slot >= job.window_tokens),
            (job.body_tokens != 0) & (job.body_slot >= job.body_tokens),
            job.leaving & (~job.append | (job.window_tokens == 0) | (job.body_tokens == 0)),
            (job.anchors != 0) & self._without_anchors(job),
        ]
        with m.If(job.tokens == 0):
            m.d.comb += problem.eq(JobStatus.NO_TOKENS)
        with m.Elif(job.tokens > config.max_context):
            m.d.comb += problem.eq(JobStatus.TOO_MANY_TOKENS)
        with m.Elif(_any(bad)):
            m.d.comb += problem.eq(JobStatus.BAD_CODE)
        return problem

    def _without_anchors(self, job: data.View) -> Value:
        """Return whether a job can have no anchors.

        Its window is longer than `anchor_slots`, or its body is a ring or has no window behind it.
        """
        if not self._config.anchor_slots:
            return Value.cast(1)
        ring = job.body_slot + 1 != job.body_tokens
        return (job.window_tokens > self._config.anchor_slots) | (
            (job.body_tokens != 0) & (ring | (job.window_tokens == 0))
        )

    def _count_appends(self, m: Module, name: str, port: Any, enter: Value, leaving: Value) -> None:
        """Count the appends of one side that are in memory, each of one or two records."""
        queue = Queue(1, IN_FLIGHT, buffered=True)  # per append: whether it has two records
        m.submodules[f"{name}_appends"] = ResetInserter(self.restart)(queue)
        half = Signal(name=f"{name}_half")  # the first of two records is in memory
        m.d.comb += [
            queue.i.payload.eq(leaving),
            queue.i.valid.eq(enter),
            queue.o.ready.eq(port.written & (half | ~queue.o.payload)),
        ]
        with m.If(port.written):
            m.d.sync += half.eq(~half & queue.o.payload)
        with m.If(port.written & queue.o.ready):
            m.d.sync += port.appended.eq(port.appended + 1)
        with m.If(self.restart):
            m.d.sync += [half.eq(0), port.appended.eq(0)]

    def _count_debts(self, m: Module, enter: Value, job: data.View) -> None:
        """Count the elements that the host owes."""
        dim = self._config.head_dim
        for what, wanted, taken, owed in (
            ("vectors", job.append, self.vector_taken, self.vectors_owed),
            ("queries", job.attend, self.query_taken, self.queries_owed),
        ):
            count = Signal(range(IN_FLIGHT * dim + 1), name=f"{what}_count")
            m.d.sync += count.eq(count + Mux(enter & wanted, dim, 0) - taken)
            m.d.comb += owed.eq(count != 0)


def _any(flags: list[Value]) -> Value:
    result = flags[0]
    for flag in flags[1:]:
        result = result | flag
    return result
