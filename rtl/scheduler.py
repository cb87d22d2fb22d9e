"""Scheduler: takes job descriptors apart, hands the parts out, and ends jobs, well or not."""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import JobStatus
from rtl.axi import Response
from rtl.control import descriptor_layout, job_end_layout
from rtl.layouts import append_task_layout, query_task_layout, value_exponent_task_layout
from rtl.memory_layouts import APPEND_BITS, fetch_layout, place_layout, read_job_layout
from rtl.streams import Fork, Queue

__all__ = ["IN_FLIGHT", "AppendPort", "Scheduler", "attend_layout"]

#: Jobs in flight: one whose outputs leave, one in the core, one that is handed out, one to spare.
IN_FLIGHT = 4


class AppendPort(wiring.Signature):
    """What the scheduler and the blocks that append to one side, keys or values, tell each other.

    Directions are the scheduler's. Both streams have one transfer per record; `cancel` withdraws
    what they offer.

    Attributes
    ----------
    tasks : stream Out, `append_task_layout`, to the append path
    places : stream Out, `place_layout`, to the record writer
    written : In, pulse: a record is in memory
    appended : Out, number of appends that are in memory as a whole, modulo ``2**APPEND_BITS``, for
        the reader's fences
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
    """What the core must know of a job beside its queries' exponents."""
    return data.StructLayout({"last_token": config.token_bits})


class Scheduler(wiring.Component):
    """Hands out one job at a time, while those before it may still be in the core.

    A job's parts go to their blocks as soon as each takes its own: queries, read, core, value
    exponent, fetch of the leaving token, and on each side the append's tasks and places. The next
    job is looked at when all parts are taken, which the core's is when the job before has passed
    its last value slice: so one job is conditioned, fetched and appended ahead.

    Order in memory. The reader waits until what a job reads of its own append is in memory
    (`AppendPort.appended`). What an append overwrites, others have read: the writer gets places
    when every earlier job has been read, and the place of the new token when the one that leaves
    the window, whose slot it takes, has been fetched.

    Errors. A descriptor that cannot be right ends its job with a status; the job's vectors are
    taken from the host and thrown away. At an error of the memory all jobs in flight end with its
    status: reads and writes are drained, vectors that the host still owes are thrown away, a job
    whose outputs have begun to leave gives them all, a job that has done everything by then ends
    well, and every block starts anew. A descriptor that was taken and not handed out is looked at
    afterwards.

    Attributes
    ----------
    jobs : stream In, `descriptor_layout`
    done : stream Out, `job_end_layout`, one per job in the order of the jobs
    queries, reads, attends, exponents, fetches : streams Out, a job's parts; withdrawn by `cancel`
    key, value : `AppendPort`, a job's parts for the append of either side
    job_read, fetch_read : In, pulses of the reader
    attended : In, pulse: a job's last output has left
    read_error, write_error : In, responses, OKAY if none
    idle : In, reader and writer have nothing to do
    vector_taken, query_taken : In, pulses: the host gave an element
    vectors_owed, queries_owed : Out, the host owes elements of jobs that were handed out
    discard : Out, elements are taken and thrown away
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
        inputs = ("job_read", "fetch_read", "attended", "idle", "vector_taken", "query_taken")
        outputs = ("vectors_owed", "queries_owed", "discard", "cancel", "restart", "appending")
        super().__init__(
            {
                "jobs": In(stream.Signature(descriptor_layout(config))),
                "done": Out(stream.Signature(job_end_layout())),
                **{name: Out(stream.Signature(layout)) for name, layout in parts.items()},
                "key": Out(AppendPort(config)),
                "value": Out(AppendPort(config)),
                "read_error": In(Response),
                "write_error": In(Response),
                **dict.fromkeys((*inputs, "output_begun"), In(1)),
                **dict.fromkeys(outputs, Out(1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        job = Signal(descriptor_layout(config))
        problem = self._problem(m, job)
        enter = Signal()  # the job is right, and is handed out
        refuse = Signal()  # it is not

        # --- what has been started and what has ended ---------------------------------------------
        # counted modulo far more than are ever in flight
        appends = Signal(APPEND_BITS)  # handed out, the current job's included
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

        # --- the job's parts ----------------------------------------------------------------------
        handing = Signal()  # some of them have not been taken
        parts = Fork(m, handing & ~self.cancel, renew=enter | self.restart)
        self._offer_attend(m, parts, job, appends)
        self._offer_fetch(m, parts, job, appends_before)
        overwritable = (reads_done == reads_before) & fetched
        for side in self._sides(job):
            self._offer_append(m, parts, job, side, overwritable)
            self._count_appends(m, side, enter & job.append, job.leaving)

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
                m.d.comb += self.jobs.ready.eq(~error)
                with m.If(error):
                    m.next = "FAIL"
                with m.Elif(self.jobs.valid):
                    m.d.sync += [job.eq(self.jobs.payload), held.eq(1)]
                    m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(error):
                    m.next = "FAIL"
                with m.Elif(flight.i.ready & (problem == JobStatus.OK)):
                    m.d.comb += enter.eq(1)
                    m.d.sync += [held.eq(0), handing.eq(1)]
                    m.next = "HAND_OUT"
                with m.Elif(flight.i.ready & ~owed):
                    m.d.comb += refuse.eq(1)
                    m.d.sync += held.eq(0)
                    m.next = "REFUSE"
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

    def _problem(self, m: Module, job: data.View) -> Signal:
        """What is wrong with a descriptor."""
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
            job.leaving & (~job.append | (job.window_tokens == 0) | (job.body_tokens == 0)),
        ]
        with m.If(job.tokens == 0):
            m.d.comb += problem.eq(JobStatus.NO_TOKENS)
        with m.Elif(job.tokens > config.max_context):
            m.d.comb += problem.eq(JobStatus.TOO_MANY_TOKENS)
        with m.Elif(_any(bad)):
            m.d.comb += problem.eq(JobStatus.BAD_CODE)
        return problem

    def _sides(self, job: data.View) -> tuple[_Side, _Side]:
        """What a descriptor says of keys and of values."""
        return (
            _Side("key", self.key, job.key, job.key_digits, job.key_constants, job.centre, 0),
            _Side("value", self.value, job.value, job.value_digits, job.value_constants, 0, 1),
        )

    def _offer_attend(self, m: Module, parts: Fork, job: data.View, appends: Value) -> None:
        """Offer what attention must know of a job, and the value exponent's task."""
        parts.to("queries", self.queries, times=job.attend)
        parts.to("attends", self.attends, times=job.attend)
        parts.to("exponents", self.exponents, times=job.append | job.attend)
        # the reader looks at a job until it has sent its last request: a copy for it alone
        copy = Queue(read_job_layout(self._config), 1, buffered=True)
        m.submodules.reads_copy = ResetInserter(self.restart)(copy)
        parts.to("reads", copy.i, times=job.attend)
        read, exponent = copy.i.payload, self.exponents.payload
        m.d.comb += [
            self.reads.valid.eq(copy.o.valid & ~self.cancel),
            self.reads.payload.eq(copy.o.payload),
            copy.o.ready.eq(self.reads.ready & self.reads.valid),
            self.queries.payload.rotate.eq(job.rotate),
            self.queries.payload.query_exponent.eq(job.query_exponent),
            self.attends.payload.last_token.eq(job.tokens - 1),
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
        for field in ("sink_tokens", "body_tokens", "window_tokens", "window_start"):
            m.d.comb += read[field].eq(job[field])

    def _offer_fetch(self, m: Module, parts: Fork, job: data.View, appends_before: Value) -> None:
        """Offer the fetch of the token that leaves the window."""
        parts.to("fetches", self.fetches, times=job.leaving)
        fetch = self.fetches.payload
        m.d.comb += [
            fetch.key_window.eq(job.key.window),
            fetch.value_window.eq(job.value.window),
            fetch.slot.eq(_newest_slot(job)),
            fetch.digits.eq(job.tier_digits),
            fetch.appends.eq(appends_before),
        ]

    def _offer_append(
        self, m: Module, parts: Fork, job: data.View, side: _Side, overwritable: Value
    ) -> None:
        """Offer the records of one side: the new one first, then the one that leaves the window.

        Parameters
        ----------
        overwritable : The records that these overwrite have been read.
        """
        tasks, places = side.port.tasks, side.port.places
        done = parts.to(f"{side.name}_tasks", tasks, times=_records(job))
        placed = parts.to(f"{side.name}_places", places, times=_records(job), when=overwritable)
        windowed, sink = job.window_tokens != 0, job.body_tokens == 0

        def in_tier(leaving: Value) -> Value:
            """Whether the record is in sinks or window; without a window it is in sinks or body."""
            return ~leaving & (windowed | sink)

        leaving = done == 1
        tier = in_tier(leaving)
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

        leaving = placed == 1
        tier = in_tier(leaving)
        m.d.comb += [
            places.payload.planes.eq(Mux(tier, job.tier_digits, side.digits)),
            places.payload.residual.eq(~tier & job.residual),
            places.payload.base.eq(side.regions.body),
            places.payload.slot.eq(job.body_tokens - 1),
        ]
        with m.If(~leaving & windowed):
            m.d.comb += [
                places.payload.base.eq(side.regions.window),
                places.payload.slot.eq(_newest_slot(job)),
            ]
        with m.Elif(sink):  # no token leaves then
            m.d.comb += [
                places.payload.base.eq(side.regions.sinks),
                places.payload.slot.eq(job.sink_tokens - 1),
            ]

    def _count_appends(self, m: Module, side: _Side, enter: Value, leaving: Value) -> None:
        """Count appends of one side from the records that are in memory, one or two per append."""
        port = side.port
        queue = Queue(1, IN_FLIGHT, buffered=True)  # of appends: whether they have two records
        m.submodules[f"{side.name}_appends"] = ResetInserter(self.restart)(queue)
        half = Signal(name=f"{side.name}_half")  # the first of two records is in memory
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
        """Elements that the host owes."""
        dim = self._config.head_dim
        for what, wanted, taken, owed in (
            ("vectors", job.append, self.vector_taken, self.vectors_owed),
            ("queries", job.attend, self.query_taken, self.queries_owed),
        ):
            count = Signal(range(IN_FLIGHT * dim + 1), name=f"{what}_count")
            m.d.sync += count.eq(count + Mux(enter & wanted, dim, 0) - taken)
            m.d.comb += owed.eq(count != 0)


class _Side(NamedTuple):
    """A port for appends, and what a descriptor says of its side."""

    name: str
    port: Any
    regions: data.View
    digits: Value
    constants: data.View
    centre: Value | int
    unit_first: int


def _records(job: data.View) -> Value:
    """Number of records per side that a job appends."""
    return Mux(job.append, 1 + job.leaving, 0)


def _newest_slot(job: data.View) -> Value:
    """Slot of the newest token in the window."""
    return Mux(job.window_start == 0, job.window_tokens, job.window_start) - 1


def _any(flags: list[Value]) -> Value:
    result = flags[0]
    for flag in flags[1:]:
        result = result | flag
    return result
