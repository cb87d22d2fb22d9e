"""Bench of the scheduler: what each block is told of a job, when it may be told, and how jobs end.

The bench plays the blocks around it. Writes and reads take random times; what a job reads waits for
what it appended, as in the reader. The scheduler is watched for the other half: nothing may be
overwritten before it has been read.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge

from golden.scheduler import job_parts, job_problem
from kvtq_hw.codes import CacheCode
from kvtq_hw.layout import MemoryLayout
from kvtq_hw.registers import JobStatus
from rtl.scheduler import IN_FLIGHT
from sim.axi_memory import RESPONSES
from sim.bench import STALL_MIXES, Bench
from sim.descriptors import HeadDescriptors
from sim.scoreboard import Mismatch, Scoreboard
from sim.streams import stall_pattern

Job = dict[str, Any]

KINDS = ("key", "value")
WINDOWED = (
    "balanced:2/1,sinks=2,window=3,feedback",
    "balanced:1/2,window=1",
    "residual:2/3,sinks=1,window=4",
)
CODES = (*WINDOWED, "balanced:3/2", "residual:2/2,scale=absmean,sinks=3")

#: What makes a good descriptor one that is refused.
WRONG: tuple[Job, ...] = (
    {"tokens": 0},
    {"tokens": 1 << 30},
    {"key_digits": 0},
    {"value_digits": 7},
    {"tier_digits": 0},
    {"sink_tokens": 40},
    {"table": 999},
    {"window_tokens": 1, "body_tokens": 0, "sink_tokens": 0, "tokens": 1, "window_start": 1},
    {"leaving": True, "append": False},
    {"residual": True, "feedback": True},
    {"residual": False, "absmean": False},
)


#: Responses of the memory, and how the jobs in flight end.
ERRORS = {
    ("read_error", RESPONSES["slverr"]): JobStatus.READ_ERROR,
    ("read_error", RESPONSES["decerr"]): JobStatus.READ_ERROR,
    # the reader's word for a burst of another length
    ("read_error", RESPONSES["exokay"]): JobStatus.READ_TRUNCATED,
    ("write_error", RESPONSES["slverr"]): JobStatus.WRITE_ERROR,
}


def random_jobs(bench: Bench, count: int, wrong: float = 0.0) -> list[Job]:
    """Jobs of two heads of different codes, append or attend or both, some of them refused."""
    config, rng = bench.config, bench.rng
    heads = []
    for head in range(2):
        code = CacheCode.parse(str(rng.choice(CODES if head else WINDOWED)))
        layout = MemoryLayout(config, [code], 2, 24, base=0x4000)
        table = int(rng.integers(config.table_heads))
        flags = {flag: bool(rng.integers(2)) for flag in ("rotate", "centre")}
        heads.append(HeadDescriptors(layout, 0, head, table=table, **flags))
    tokens = [0, 0]
    jobs = []
    for _ in range(count):
        head = int(rng.integers(2))
        append = tokens[head] == 0 or bool(rng.random() < 0.7)
        attend = not append or bool(rng.random() < 0.7)
        tokens[head] = tokens[head] % 24 + append
        exponents = rng.integers(-40, 40, config.query_group).tolist()
        job = heads[head].job(
            tokens[head],
            append=append,
            query_exponent=exponents if attend else None,
            first=bool(rng.integers(2)),
            value_exponent=int(rng.integers(1 << config.scale_exponent_bits)),
        )
        jobs.append(job | WRONG[rng.integers(len(WRONG))] if rng.random() < wrong else job)
    return jobs


class Surroundings:
    """The blocks around the scheduler, and the rules that it must keep.

    Parameters
    ----------
    jobs : that will be started
    slow : reads take hundreds of cycles, so that appends catch up with them

    Attributes
    ----------
    given : elements that the host gave, by `vector` and `query`
    restarts : cycles of `restart`
    """

    def __init__(self, bench: Bench, jobs: list[Job], slow: bool = False) -> None:
        self._bench, self._dut = bench, bench.dut
        self._rng = bench.rng.spawn(1)[0]
        self._slow = slow
        self.given = {"vector": 0, "query": 0}
        self.restarts = 0
        self._jobs = jobs
        self._ends = 0
        self._begin(jobs)
        cocotb.start_soon(self._run())

    def _begin(self, jobs: list[Job]) -> None:
        """These jobs come next, and nothing is under way."""
        good = [job for job in jobs if job_problem(self._bench.config, job) == JobStatus.OK]
        self._good = good
        appending = [job for job in good if job["append"]]
        # of each record that is written: the jobs before its own that read, and the fetches up to
        # its own, must have been read; and how many appends there are once it is the last of its
        before = {id(job): sum(x["attend"] for x in good[:n]) for n, job in enumerate(good)}
        fetches = {id(job): sum(x["leaving"] for x in good[: n + 1]) for n, job in enumerate(good)}
        self._records = [
            (before[id(job)], fetches[id(job)], number == job["leaving"])
            for job in appending
            for number in range(1 + job["leaving"])
        ]
        # how many appends each read, and each fetch, waits for
        done = np.cumsum([job["append"] for job in good])
        self._read_waits = [int(n) for n, job in zip(done, good, strict=True) if job["attend"]]
        self._fetch_waits = [
            int(n) - 1 for n, job in zip(done, good, strict=True) if job["leaving"]
        ]
        self._places = dict.fromkeys(KINDS, 0)  # places that have been taken
        self._writing: dict[str, deque[int]] = {kind: deque() for kind in KINDS}
        self._written = dict.fromkeys(KINDS, 0)  # records
        self._asked = {"reads": 0, "fetches": 0, "attends": 0}
        self._read, self._fetched, self._attended = 0, 0, 0
        self._ended = 0  # good jobs
        self._busy_read, self._busy_fetch, self._busy_core = 0, 0, 0

    def _appends(self, kind: str) -> int:
        """Whole appends that are in memory."""
        return sum(last for _, _, last in self._records[: self._written[kind]])

    async def _run(self) -> None:
        dut, rng = self._dut, self._rng
        edge = RisingEdge(dut.clk)
        while True:
            await edge
            moved = {
                name: dut[f"{name}__valid"].value == 1 and dut[f"{name}__ready"].value == 1
                for name in ("reads", "fetches", "attends", "key_places", "value_places", "done")
            }
            pulses = dict.fromkeys(
                ("job_read", "fetch_read", "attended", "keys_written", "values_written"), 0
            )
            cancelling = dut.cancel.value == 1
            for kind in KINDS:
                if dut[f"{kind}_places__valid"].value == 1:
                    self._check_place(kind)
            if moved["done"]:
                self._check_end()
            if dut.restart.value == 1:
                self.restarts += 1
            if not cancelling:
                for name in self._asked:
                    self._asked[name] += moved[name]
                self._write(moved, pulses)
                self._read_memory(pulses)
            self._give_elements()
            for name, pulse in pulses.items():
                dut[name].value = pulse
            # what is under way on the bus is drained
            idle = cancelling and rng.random() < 0.1
            dut.idle.value = int(idle)
            if idle:
                dut.read_error.value = dut.write_error.value = 0

    def _check_place(self, kind: str) -> None:
        """A record may be written now: nobody needs what it overwrites."""
        reads, fetches, _ = self._records[self._places[kind]]
        if self._read < reads:
            raise Mismatch(
                f"{kind} record {self._places[kind]} may be written when {self._read} of the "
                f"{reads} jobs before have been read"
            )
        if self._fetched < fetches:
            raise Mismatch(f"{kind} record {self._places[kind]}: its slot has not been fetched")

    def _check_end(self) -> None:
        """A job that ends well has written everything, and its outputs have left."""
        status = JobStatus(self._dut.done__payload.value.to_unsigned())
        self._ends += 1
        if status in ERRORS.values():
            self._begin(self._jobs[self._ends :])
        if status != JobStatus.OK:
            return
        self._ended += 1
        done = self._good[: self._ended]
        appends, attends = (sum(job[what] for job in done) for what in ("append", "attend"))
        if min(map(self._appends, KINDS)) < appends or self._attended < attends:
            raise Mismatch(f"good job {self._ended - 1} ended too early")

    def _write(self, moved: dict[str, bool], pulses: dict[str, int]) -> None:
        """Write records, each in its time."""
        for kind in KINDS:
            writing = self._writing[kind]
            if writing and writing[0] == 0:
                writing.popleft()
                self._written[kind] += 1
                pulses[f"{kind}s_written"] = 1
            elif writing:
                writing[0] -= 1
            if moved[f"{kind}_places"]:
                self._places[kind] += 1
                writing.append(int(self._rng.integers(30)))

    def _read_memory(self, pulses: dict[str, int]) -> None:
        """Read what has been appended, for fetches and jobs in turn; then outputs leave."""
        rng, appended = self._rng, min(map(self._appends, KINDS))
        longest = 400 if self._slow else 40
        if self._busy_fetch:
            self._busy_fetch -= 1
            pulses["fetch_read"] = int(self._busy_fetch == 0)
        elif (
            self._fetched < self._asked["fetches"] and appended >= self._fetch_waits[self._fetched]
        ):
            self._busy_fetch = int(rng.integers(1, 20))
        self._fetched += pulses["fetch_read"]
        if self._busy_read:
            self._busy_read -= 1
            pulses["job_read"] = int(self._busy_read == 0)
        elif self._read < self._asked["reads"] and appended >= self._read_waits[self._read]:
            self._busy_read = int(rng.integers(1, longest))
        self._read += pulses["job_read"]
        if self._busy_core:
            self._busy_core -= 1
            pulses["attended"] = int(self._busy_core == 0)
        elif self._attended < min(self._asked["attends"], self._read):
            self._busy_core = int(rng.integers(1, 40))
        self._attended += pulses["attended"]

    def _give_elements(self) -> None:
        """The host gives an element that it owes."""
        for what in self.given:
            pulse = self._dut[f"{what}_taken"]
            owed = self._dut[f"{'vectors' if what == 'vector' else 'queries'}_owed"].value == 1
            # the one that is given in this cycle may be the last one
            give = owed and pulse.value == 0 and self._rng.random() < 0.7
            pulse.value = int(give)
            self.given[what] += give


def expected(bench: Bench, jobs: list[Job]) -> dict[str, list[Any]]:
    """What comes out of each stream."""
    streams: dict[str, list[Any]] = {"done": []}
    appends = 0
    for job in jobs:
        problem = job_problem(bench.config, job)
        streams["done"].append({"status": problem})
        if problem == JobStatus.OK:
            for name, payloads in job_parts(job, appends).items():
                streams.setdefault(name, []).extend(payloads)
            appends += job["append"]
    return streams


def check_given(bench: Bench, around: Surroundings, jobs: list[Job]) -> None:
    """The host has given what it owes, also for jobs that were refused."""
    dim = bench.config.head_dim
    owed = {
        "vector": dim * sum(job["append"] for job in jobs),
        "query": dim * sum(job["attend"] for job in jobs),
    }
    bench.check(around.given, owed, "elements")


async def run(bench: Bench, source: str, sink: str, slow: bool = False) -> None:
    """Start random jobs, and compare all that comes out."""
    jobs = random_jobs(bench, 60, wrong=0.15)
    around = Surroundings(bench, jobs, slow)
    bench.drive("jobs", jobs, source)
    for port, payloads in expected(bench, jobs).items():
        bench.expect(port, payloads, sink)
    await bench.finish(cycles_per_transfer=200)
    check_given(bench, around, jobs)
    bench.check(around.restarts, 0, "restarts")


@cocotb.test()
@cocotb.parametrize(source=("none", "mixed"), sink=STALL_MIXES)
async def jobs_of_all_kinds(dut: HierarchyObject, source: str, sink: str) -> None:
    """Good jobs and refused ones, back to back."""
    await run(await Bench.start(dut, "scheduler"), source, sink)


@cocotb.test()
async def append_during_a_slow_read(dut: HierarchyObject) -> None:
    """The next job's records are there long before this one has been read: their places wait."""
    await run(await Bench.start(dut, "scheduler"), "none", "none", slow=True)


@cocotb.test()
async def every_refusal(dut: HierarchyObject) -> None:
    """Each wrong descriptor between good ones: its status, its vectors, and nothing else."""
    bench = await Bench.start(dut, "scheduler")
    jobs = random_jobs(bench, 2 * len(WRONG))
    jobs[1::2] = [job | change for job, change in zip(jobs[1::2], WRONG, strict=True)]
    around = Surroundings(bench, jobs)
    bench.drive("jobs", jobs)
    streams = expected(bench, jobs)
    refusals = [end["status"] for end in streams["done"][1::2]]
    bench.check(
        refusals,
        [JobStatus.NO_TOKENS, JobStatus.TOO_MANY_TOKENS] + [JobStatus.BAD_CODE] * 9,
        "golden by hand",
    )
    for port, payloads in streams.items():
        bench.expect(port, payloads)
    await bench.finish(cycles_per_transfer=200)
    check_given(bench, around, jobs)


@cocotb.test()
@cocotb.parametrize(error=tuple(range(len(ERRORS))), moment=(30, 200, 500))
async def errors_of_the_memory(dut: HierarchyObject, error: int, moment: int) -> None:
    """All jobs in flight end with the error's status; those after them are as after a reset."""
    bench = await Bench.start(dut, "scheduler")
    (port, response), status = list(ERRORS.items())[error]
    jobs = random_jobs(bench, 40)
    around = Surroundings(bench, jobs)
    bench.drive("jobs", jobs)
    for sink in bench.sinks.values():
        cocotb.start_soon(sink.drain(stall_pattern("none", bench.rng)))
    edge = RisingEdge(dut.clk)
    for _ in range(moment):
        await edge
    dut[port].value = response
    for _ in range(20_000):
        await edge
        if around.restarts:
            break
    seen = {name: len(sink.payloads) for name, sink in bench.sinks.items()}
    ended = bench.sinks["done"].payloads
    for _ in range(40_000):
        await edge
        if len(ended) == len(jobs):
            break
    well, failed = seen["done"], ended.count(status)
    if not 1 <= failed <= IN_FLIGHT:
        raise Mismatch(f"{failed} jobs failed")
    good = [JobStatus.OK]
    rest = good * (len(jobs) - well - failed)
    bench.check(ended, good * well + [status] * failed + rest, "ends of the jobs")
    # what had been handed out of jobs that failed is lost; the next one's parts are whole
    for name, payloads in expected(bench, jobs[well + failed :]).items():
        if name != "done":
            shape = bench.component.signature.members[name].signature.members["payload"].shape
            Scoreboard(name, shape, payloads).finish(bench.sinks[name].payloads[seen[name] :])
    check_given(bench, around, jobs)
    bench.check(around.restarts, 1, "restarts")
