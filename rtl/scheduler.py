"""Scheduler: takes job descriptors apart, hands the parts out, and ends jobs, well or not."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import JobStatus
from rtl.axi import Response
from rtl.control import descriptor_layout, job_end_layout
from rtl.layouts import append_task_layout, query_task_layout, value_exponent_task_layout
from rtl.memory_layouts import fetch_layout, place_layout, read_job_layout

__all__ = ["IN_FLIGHT", "Scheduler", "attend_layout"]

#: Jobs in flight: one whose outputs leave, one in the core, one that is handed out, one to spare.
IN_FLIGHT = 4

# Appends and reads are counted modulo this, far more than are ever in flight.
_COUNT_BITS = 4


def attend_layout(config: EngineConfig) -> data.StructLayout:
    """What the core must know of a job beside its queries' exponents."""
    return data.StructLayout({"last_token": config.token_bits})


class Scheduler(wiring.Component):
    """One job is handed out at a time, while those before it may still be in the core.

    A job's parts go to their blocks as soon as each takes its own: queries, read, core, value
    exponent, fetch of the leaving token, append of key and value, places of their records. The next
    job is looked at when all parts are taken, which the core's is when the job before has passed
    its last value slice: so one job is conditioned, fetched and appended ahead.

    Order in memory. What a job reads of its own append, the reader waits for (`keys_appended`,
    `values_appended`: appends that are in memory as a whole). What an append overwrites, others
    have read: the writer gets places when every earlier job has been read, and the place of the
    new token when the one that leaves the window, whose slot it takes, has been fetched.

    Errors. A descriptor that cannot be right ends its job with a status; the job's vectors are
    taken from the host and thrown away. At an error of the memory all jobs in flight end with its
    status: reads and writes are drained, vectors that the host still owes are thrown away, a job
    whose outputs have begun to leave gives them all, who has done everything by then ends well, and
    every block starts anew. A descriptor that was taken and not handed out is looked at afterwards.

    Attributes
    ----------
    jobs : stream In, `descriptor_layout`
    done : stream Out, `job_end_layout`, one a job in the order of the jobs
    queries, reads, attends, exponents, fetches, key_tasks, value_tasks, key_places, value_places :
        streams Out, a job's parts; withdrawn by `cancel`
    keys_appended, values_appended : Out, for the reader's fences
    keys_written, values_written, job_read, fetch_read : In, pulses of writer and reader
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
            "key_tasks": append_task_layout(config),
            "value_tasks": append_task_layout(config),
            "key_places": place_layout(config),
            "value_places": place_layout(config),
        }
        inputs = (
            *("keys_written", "values_written", "job_read", "fetch_read", "attended", "idle"),
            *("vector_taken", "query_taken", "output_begun"),
        )
        outputs = ("vectors_owed", "queries_owed", "discard", "cancel", "restart", "appending")
        super().__init__(
            {
                "jobs": In(stream.Signature(descriptor_layout(config))),
                "done": Out(stream.Signature(job_end_layout())),
                **{name: Out(stream.Signature(layout)) for name, layout in parts.items()},
                "keys_appended": Out(_COUNT_BITS),
                "values_appended": Out(_COUNT_BITS),
                "read_error": In(Response),
                "write_error": In(Response),
                **dict.fromkeys(inputs, In(1)),
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
        appends = Signal(_COUNT_BITS)  # handed out, the current job's included
        appends_before = Signal(_COUNT_BITS)
        reads = Signal(_COUNT_BITS)
        reads_before = Signal(_COUNT_BITS)
        reads_done = Signal(_COUNT_BITS)
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
            (self.keys_appended != appends) | (self.values_appended != appends)
        )
        writable = reads_done == reads_before
        handed_out = self._hand_out(m, job, enter, appends, appends_before, writable, fetched)
        self._count_appends(m, enter & job.append, job.leaving)
        self._count_debts(m, enter | refuse, job)

        # --- jobs in flight -----------------------------------------------------------------------
        m.submodules.flight = flight = SyncFIFOBuffered(width=2 + len(problem), depth=IN_FLIGHT)
        status, attend, append = flight.r_data[2:], flight.r_data[1], flight.r_data[0]
        attends_left = Signal(range(IN_FLIGHT + 1))  # jobs whose outputs have left
        appends_ended = Signal(_COUNT_BITS)
        appended = (self.keys_appended != appends_ended) & (self.values_appended != appends_ended)
        served = (~append | appended) & (~attend | (attends_left != 0))
        failure = Signal(JobStatus)
        failing = Signal()  # jobs in flight end with `failure`
        m.d.comb += [
            flight.w_data[0].eq(job.append),
            flight.w_data[1].eq(job.attend),
            flight.w_data[2:].eq(problem),
            flight.w_en.eq(enter | refuse),
            self.done.valid.eq(flight.r_rdy & (failing | (status != JobStatus.OK) | served)),
            self.done.payload.status.eq(Mux(failing, failure, status)),
            flight.r_en.eq(self.done.valid & self.done.ready),
        ]
        ends_well = flight.r_en & (status == JobStatus.OK) & ~failing
        m.d.sync += attends_left.eq(attends_left + self.attended - (ends_well & attend))
        with m.If(ends_well & append):
            m.d.sync += appends_ended.eq(appends_ended + 1)
        with m.If(self.restart):
            counts = appends, reads, reads_done, attends_left, appends_ended
            m.d.sync += [count.eq(0) for count in counts]

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
                with m.Elif(flight.w_rdy & (problem == JobStatus.OK)):
                    m.d.comb += enter.eq(1)
                    m.d.sync += held.eq(0)
                    m.next = "HAND_OUT"
                with m.Elif(flight.w_rdy & ~owed):
                    m.d.comb += refuse.eq(1)
                    m.d.sync += held.eq(0)
                    m.next = "REFUSE"
            with m.State("HAND_OUT"):
                with m.If(error):
                    m.next = "FAIL"
                with m.Elif(handed_out):
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
                with m.If(~flight.r_rdy):
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

    def _hand_out(
        self,
        m: Module,
        job: data.View,
        enter: Signal,
        appends: Signal,
        appends_before: Signal,
        writable: Value,
        fetched: Signal,
    ) -> Value:
        """Offer each part until it is taken; returns whether all are."""
        windowed = job.window_tokens != 0
        sink = job.body_tokens == 0  # the new token is one, where there is no window
        newest_slot = Mux(job.window_start == 0, job.window_tokens, job.window_start) - 1
        # the reader looks at a job until it has sent its last request: a copy for it alone
        read = self._describe_attend(m, job, appends)
        copy = SyncFIFOBuffered(width=read.shape().size, depth=1)
        m.submodules.reads_copy = ResetInserter(self.restart)(copy)
        m.d.comb += [
            copy.w_data.eq(read),
            self.reads.valid.eq(copy.r_rdy & ~self.cancel),
            self.reads.payload.eq(copy.r_data),
            copy.r_en.eq(self.reads.ready & self.reads.valid),
            self.fetches.payload.key_window.eq(job.key.window),
            self.fetches.payload.value_window.eq(job.value.window),
            self.fetches.payload.slot.eq(newest_slot),
            self.fetches.payload.digits.eq(job.tier_digits),
            self.fetches.payload.appends.eq(appends_before),
        ]
        offers = (
            ("queries", job.attend, self.queries.valid, self.queries.ready),
            ("reads", job.attend, copy.w_en, copy.w_rdy),
            ("attends", job.attend, self.attends.valid, self.attends.ready),
            ("exponents", job.append | job.attend, self.exponents.valid, self.exponents.ready),
            ("fetches", job.leaving, self.fetches.valid, self.fetches.ready),
        )
        taken = []
        for name, wanted, valid, ready in offers:
            pending = Signal(name=f"{name}_pending")
            m.d.comb += valid.eq(pending & ~self.cancel)
            with m.If(valid & ready):
                m.d.sync += pending.eq(0)
            with m.If(enter):
                m.d.sync += pending.eq(wanted)
            with m.If(self.restart):
                m.d.sync += pending.eq(0)
            taken.append(~pending)

        for kind in ("key", "value"):
            tasks, places = getattr(self, f"{kind}_tasks"), getattr(self, f"{kind}_places")
            regions, body_digits = job[kind], job[f"{kind}_digits"]
            for port, name in ((tasks, "task"), (places, "place")):
                # records of one job: the new one first, then the one that leaves the window
                left = Signal(range(3), name=f"{kind}_{name}s_left")
                leaving = job.leaving & (left == 1)
                with m.If(port.valid & port.ready):
                    m.d.sync += left.eq(left - 1)
                with m.If(enter):
                    m.d.sync += left.eq(Mux(job.append, 1 + job.leaving, 0))
                with m.If(self.restart):
                    m.d.sync += left.eq(0)
                taken.append(left == 0)
                tier = ~leaving & (windowed | sink)
                if port is tasks:
                    m.d.comb += port.valid.eq((left != 0) & ~self.cancel)
                    self._describe_append(m, port.payload, kind, job, leaving, tier)
                    continue
                m.d.comb += [
                    port.valid.eq((left != 0) & writable & fetched & ~self.cancel),
                    port.payload.planes.eq(Mux(tier, job.tier_digits, body_digits)),
                    port.payload.residual.eq(~tier & job.residual),
                    port.payload.base.eq(regions.body),
                    port.payload.slot.eq(job.body_tokens - 1),
                ]
                with m.If(~leaving & windowed):
                    m.d.comb += [
                        port.payload.base.eq(regions.window),
                        port.payload.slot.eq(newest_slot),
                    ]
                with m.Elif(sink):  # no token leaves then
                    m.d.comb += [
                        port.payload.base.eq(regions.sinks),
                        port.payload.slot.eq(job.sink_tokens - 1),
                    ]
        return ~_any([~flag for flag in taken])

    def _describe_attend(self, m: Module, job: data.View, appends: Signal) -> data.View:
        """What an attention's blocks must know; returns what the reader must."""
        read, exponent = Signal(read_job_layout(self._config)), self.exponents.payload
        m.d.comb += [
            self.queries.payload.rotate.eq(job.rotate),
            self.queries.payload.query_exponent.eq(job.query_exponent),
            self.attends.payload.last_token.eq(job.tokens - 1),
            exponent.table.eq(job.table),
            exponent.first.eq(job.first),
            exponent.floor.eq(job.value_exponent),
            exponent.records.eq(Mux(job.append, 1 + job.leaving, 0)),
            exponent.attend.eq(job.attend),
            exponent.rotate.eq(job.rotate),
            read.appends.eq(appends),
            read.residual.eq(job.residual),
        ]
        for field in ("tier_digits", "key_digits", "value_digits", "key", "value"):
            m.d.comb += read[field].eq(job[field])
        for field in ("sink_tokens", "body_tokens", "window_tokens", "window_start"):
            m.d.comb += read[field].eq(job[field])
        return read

    def _describe_append(
        self, m: Module, task: data.View, kind: str, job: data.View, leaving: Value, tier: Value
    ) -> None:
        """What an append path must know of a record."""
        code = task.code
        m.d.comb += [
            task.leaving.eq(leaving),
            task.rotate.eq(job.rotate),
            task.centre.eq(job.centre if kind == "key" else 0),
            code.table.eq(job.table),
            code.unit_first.eq(kind == "value"),
            code.planes.eq(Mux(tier, job.tier_digits, job[f"{kind}_digits"])),
            code.residual.eq(~tier & job.residual),
            code.absmean.eq(tier | job.absmean),
            code.feedback.eq(~tier & job.feedback),
            code.constants.eq(job[f"{kind}_constants"]),
        ]
        with m.If(tier):
            m.d.comb += code.constants[0].eq(job.tier_constant)

    def _count_appends(self, m: Module, enter: Value, leaving: Value) -> None:
        """`keys_appended` and `values_appended` from the records that are in memory."""
        for kind in ("keys", "values"):
            written, appended = getattr(self, f"{kind}_written"), getattr(self, f"{kind}_appended")
            fifo = SyncFIFOBuffered(width=1, depth=IN_FLIGHT)
            m.submodules[f"{kind}_records"] = ResetInserter(self.restart)(fifo)
            half = Signal(name=f"{kind}_half")  # the first of two records is in memory
            m.d.comb += [
                fifo.w_data.eq(leaving),
                fifo.w_en.eq(enter),
                fifo.r_en.eq(written & (half | ~fifo.r_data)),
            ]
            with m.If(written):
                m.d.sync += half.eq(~half & fifo.r_data)
            with m.If(written & fifo.r_en):
                m.d.sync += appended.eq(appended + 1)
            with m.If(self.restart):
                m.d.sync += [half.eq(0), appended.eq(0)]

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


def _any(flags: list[Value]) -> Value:
    result = flags[0]
    for flag in flags[1:]:
        result = result | flag
    return result
