"""Bench of the scheduler: random jobs, right and wrong, under errors and resets at any cycle.

`sim.bench.surroundings` models the blocks around the scheduler, and `sim.bench.scheduler_rules`
checks every cycle. The required coverage is declared here: a bin without a hit fails the bench.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject

from golden.scheduler import job_problem
from kvtq_hw.contract.registers import JobStatus
from sim.bench.axi_memory import RESPONSES
from sim.bench.bench import bench_config
from sim.bench.coverage import Coverage, Cross, Point
from sim.bench.job_cases import LIMITS, WRONG, limits_of, random_job, wrong_job
from sim.bench.scheduler_rules import IN_FLIGHT, PARTS, Cycle, Errors
from sim.bench.scoreboard import Mismatch
from sim.bench.streams import current_cycle
from sim.bench.surroundings import Pace, Surroundings

Job = dict[str, Any]

_SEARCH = 20_000  # most cycles until a state is met

_SLVERR, _DECERR, _EXOKAY = (RESPONSES[name] for name in ("slverr", "decerr", "exokay"))

#: Responses of reader and writer, each with its meaning.
ERRORS: dict[str, tuple[Errors, str]] = {
    "read_slverr": ((_SLVERR, 0), "A read is answered with SLVERR."),
    "read_decerr": ((_DECERR, 0), "A read is answered with DECERR."),
    "read_truncated": ((_EXOKAY, 0), "A burst of another length than asked for."),
    "write_slverr": ((0, _SLVERR), "A write is answered with SLVERR."),
    "write_decerr": ((0, _DECERR), "A write is answered with DECERR."),
    "both": ((_SLVERR, _SLVERR), "A read and a write fail in the same cycle."),
}

STATES = {
    "offered": "A descriptor is offered in the very cycle: it is not taken.",
    "taken": "A descriptor was taken in the cycle before: it is kept for afterwards.",
    "held": "A descriptor waits for room in the flight, or for elements of jobs before it.",
    "full": "A descriptor waits, and of the jobs in a full flight nothing is read or in memory.",
    "handing_out": "Some parts of a job have not been taken.",
    "refusing": "Elements of a refused job are thrown away.",
    "appending": "An append is not in memory as a whole.",
    "fetching": "A token that leaves the window is fetched.",
    "reading": "A job's records are read.",
    "attending": "A job is in the core.",
    "leaving": "A job's outputs leave.",
    "ending": "A job's end is not taken.",
    "nothing": "No job was taken or offered.",
}
WAITS = {
    "nothing": "The abort ends in its first cycle.",
    "memory": "Reader and writer are not idle.",
    "vectors": "The host owes elements of keys and values.",
    "queries": "The host owes elements of queries.",
    "outputs": "Outputs leave.",
    "end": "A job ends that has done everything.",
}
OWED = {
    "none": "The host owes nothing.",
    "vectors": "It owes elements of a key and a value.",
    "queries": "It owes elements of queries.",
    "both": "It owes both.",
}

COVERAGE = Coverage(
    "scheduler",
    [
        Point("wrong", "In what a descriptor is wrong.", {k: w.meaning for k, w in WRONG.items()}),
        Point(
            "before",
            "What was taken before a wrong descriptor.",
            {
                "right": "A right one.",
                "wrong": "A wrong one.",
                "reset": "Nothing since a reset.",
                "abort": "Nothing since an abort.",
            },
        ),
        Point(
            "refusal",
            "How a wrong descriptor's job ends.",
            {
                status.name: "Its own status."
                for status in dict.fromkeys(w.status for w in WRONG.values())
            },
        ),
        Point("owed", "What the host owes of earlier jobs when a wrong descriptor comes.", OWED),
        Point(
            "limit",
            "A size that is just allowed, in a job that ends well.",
            {name: limit.meaning for name, limit in LIMITS.items()},
        ),
        Point(
            "event",
            "What ends the jobs in flight.",
            {
                **{name: meaning for name, (_, meaning) in ERRORS.items()},
                "reset": "The accelerator is reset.",
            },
        ),
        Point("state", "What is going on then; each that applies.", STATES),
        Point(
            "failed",
            "Jobs that end with an error of the memory.",
            {str(number): "So many." for number in range(IN_FLIGHT + 1)},
        ),
        Point("wait", "What alone an abort waits for in a cycle.", WAITS),
        Point(
            "anchors",
            "What a job with anchors finds out.",
            {
                "none": "No anchor.",
                "some": "Anchors, and none is new.",
                "new": "A new anchor, which is not the first.",
                "first": "The first anchor.",
                "all": "All tokens that have left the window are anchors.",
            },
        ),
        Point(
            "decision",
            "A decision that is not known at once.",
            {"waits": "It comes later.", "error": "The memory fails before it comes."},
        ),
        Point(
            "stalled",
            "A stream that is offered and not taken.",
            {name: "That stream." for name in ("jobs", *PARTS, "done")},
        ),
    ],
    [
        Cross("wrong_after", "Each kind in each place.", ("wrong", "before")),
        Cross("refusal_owed", "Each refusal while elements are owed.", ("refusal", "owed")),
        Cross("event_in_state", "Each error, and a reset, in each state.", ("event", "state")),
    ],
)


def states(world: Surroundings, cycle: Cycle) -> list[str]:
    """Return the names of `STATES` that held in a cycle."""
    rules = world.rules
    newest, busy = rules.newest, world.busy
    waits = newest is not None and newest.asks and not newest.entered
    found = {
        "offered": world.offering and rules.handed_out and not waits,
        "taken": cycle.job is not None,
        "held": waits and cycle.job is None,
        "full": waits and not rules.served and len(rules.in_flight) > IN_FLIGHT,
        "handing_out": newest is not None and newest.right and not rules.handed_out and not waits,
        "refusing": rules.refusing and any(rules.debts.values()),
        "appending": cycle.appending,
        "fetching": "fetch" in busy,
        "reading": "read" in busy,
        "attending": "core" in busy,
        "leaving": cycle.output_begun,
        "ending": cycle.end is not None and "done" not in cycle.taken,
        "nothing": not (rules.in_flight or world.offering or any(rules.debts.values())),
    }
    return [name for name, holds in found.items() if holds]


class Life(Surroundings):
    """Surroundings with an endless stream of random jobs; coverage samples every cycle.

    Attributes
    ----------
    endless : whether further jobs follow and the pace changes
    """

    def __init__(self, dut: HierarchyObject) -> None:
        super().__init__(dut)
        self.endless = False
        self._kinds: dict[int, str] = {}  # kinds of wrong jobs not yet taken
        self._before = "reset"
        self._aborting = False

    def plan(self, kind: str | None = None, **changes: Any) -> None:
        """Queue a random job, wrong by `kind` if given, with the fields `changes`."""
        job = random_job(self.rng, self.config) | changes
        if kind:
            job = wrong_job(self.config, job, kind)
            self._kinds[id(job)] = kind
        self.queue.append(job)

    def plan_any(self) -> None:
        """Queue a random job; one in five is wrong."""
        self.plan(str(self.rng.choice(list(WRONG))) if self.rng.random() < 0.2 else None)

    async def step(self) -> Cycle:
        while self.endless and len(self.queue) < 3:
            self.plan_any()
        if self.endless and self.rng.random() < 0.02:
            self.pace = Pace.random(self.rng)
        debts, in_flight = dict(self.rules.debts), list(self.rules.in_flight)
        cycle = await super().step()
        if cycle.job is not None:
            self._sample_job(self._kinds.pop(id(cycle.job), None), debts)
        if cycle.answer is not None:
            self._sample_decision(cycle)
        for name in {*cycle.parts} - cycle.taken:
            COVERAGE.sample(stalled=name)
        if self.offering and cycle.job is None:
            COVERAGE.sample(stalled="jobs")
        if cycle.end is not None and "done" not in cycle.taken:
            COVERAGE.sample(stalled="done")
        if cycle.end == JobStatus.OK and "done" in cycle.taken:
            for name in limits_of(self.config, dict(in_flight[0].job)):
                COVERAGE.sample(limit=name)
        self._sample_abort(cycle)
        return cycle

    def _sample_job(self, kind: str | None, debts: dict[str, int]) -> None:
        if kind:
            owing = [what for what, debt in debts.items() if debt]
            owed = "both" if len(owing) == 2 else (owing or ["none"])[0]
            COVERAGE.sample(wrong=kind, before=self._before)
            COVERAGE.sample(refusal=WRONG[kind].status.name, owed=owed)
        self._before = "wrong" if kind else "right"

    def _sample_decision(self, cycle: Cycle) -> None:
        answer, newest = cycle.answer, self.rules.newest
        if answer is None or newest is None:
            return
        waits = newest.right and newest.job["anchors"] and not newest.decided and not answer.known
        if waits and cycle.job is None:
            COVERAGE.sample(decision="error" if any(cycle.errors) else "waits")
        if answer.taken:
            promoted, before = answer.decision
            found = ("none", "first")[promoted] if before == 0 else ("some", "new")[promoted]
            COVERAGE.sample(anchors=found)
            if 0 < answer.decision.after == newest.job["body_tokens"]:
                COVERAGE.sample(anchors="all")

    def _sample_abort(self, cycle: Cycle) -> None:
        waits = {
            "memory": not cycle.idle,
            "vectors": cycle.owed["vectors"],
            "queries": cycle.owed["queries"],
            "outputs": cycle.output_begun,
            "end": cycle.end is not None,
        }
        reasons = [name for name, holds in waits.items() if holds]
        if cycle.cancel and len(reasons) == 1:
            COVERAGE.sample(wait=reasons[0])
        if cycle.restart:
            if not self._aborting:
                COVERAGE.sample(wait="nothing")
            COVERAGE.sample(failed=str(sum(job.entered for job in self.rules.in_flight)))
            self._before = "abort"
        self._aborting = cycle.cancel

    async def strike(self, event: str) -> None:
        """Cause an error of the memory or a reset in the next cycle."""
        now = states(self, self.last)
        if event == "reset":
            await self.reset()
            self._before, self._aborting = "reset", False
        else:
            self.fail(ERRORS[event][0])
            await self.step()
        for state in now:
            COVERAGE.sample(event=event, state=state)

    async def until(self, state: str) -> None:
        """Step until the jobs are in a state of `STATES`."""
        for _ in range(_SEARCH):
            if state in states(self, self.last):
                return
            await self.step()
        raise Mismatch(f"in {_SEARCH} cycles there was no state {state!r}")


async def start(dut: HierarchyObject, endless: bool = False) -> Life:
    """Reset the scheduler and run one cycle."""
    life = Life(dut)
    await life.start()
    life.endless = endless
    await life.step()
    return life


async def finish(life: Life, least: int = 1) -> None:
    """Stop planning jobs and let the planned jobs end."""
    life.endless = False
    life.pace = Pace()
    await life.run_dry()
    if len(life.rules.ended) < least:
        raise Mismatch(f"{len(life.rules.ended)} jobs ended, expected at least {least}")


@cocotb.test()
async def statuses_by_hand(dut: HierarchyObject) -> None:
    """Check that the golden scheduler refuses wrong descriptors with the hand-written statuses."""
    config, rng = bench_config(), np.random.default_rng(cocotb.RANDOM_SEED)
    for kind, wrong in WRONG.items():
        for _ in range(20):
            job = random_job(rng, config)
            if job_problem(config, job) != JobStatus.OK:
                raise Mismatch(f"a right job is refused: {job}")
            found = job_problem(config, wrong_job(config, job, kind))
            if found != wrong.status:
                raise Mismatch(f"{kind}: {found.name}, expected {wrong.status.name}")


@cocotb.test()
@cocotb.parametrize(part=(0, 1))
async def errors_at_any_time(dut: HierarchyObject, part: int) -> None:
    """Cause errors, also two at once, and resets at random times in an endless job stream."""
    life = await start(dut, endless=True)
    events = [*ERRORS, "reset"]
    for _ in range(60):
        for _ in range(int(life.rng.integers(1, 160))):
            await life.step()
        await life.strike(str(life.rng.choice(events)))
    await finish(life)


@cocotb.test()
async def right_jobs_without_a_pause(dut: HierarchyObject) -> None:
    """Run jobs at full speed that only append, only attend, or do nothing."""
    life = await start(dut)
    for append, attend in ((True, True), (True, False), (False, True), (False, False)):
        for _ in range(20):
            life.plan(append=append, attend=attend, leaving=False)
    await finish(life, 80)


@cocotb.test()
async def decisions_cost_no_cycle(dut: HierarchyObject) -> None:
    """Run the same jobs with and without anchors: they take the same number of cycles."""
    life = await start(dut)
    tiers: Job = {"sink_tokens": 1, "body_tokens": 2, "window_tokens": 2, "tokens": 5}
    tiers |= {"window_start": 1, "window_slot": 1, "body_slot": 1, "attend": True, "append": True}
    cycles = []
    for anchors in (0, 4):
        for _ in range(20):
            life.plan(None, **tiers, leaving=True, anchors=anchors)
        begin = current_cycle()
        await life.run_dry()
        cycles.append(current_cycle() - begin)
    life.bench.check(cycles[1], cycles[0], "cycles with anchors")
    await finish(life, 40)


@cocotb.test()
async def flight_full_of_appends(dut: HierarchyObject) -> None:
    """Fill the flight with appends that all wait for their elements."""
    life = await start(dut)
    life.pace = Pace(elements=0.0)
    for _ in range(2 * IN_FLIGHT):
        life.plan(append=True, attend=False, leaving=False)
    await life.until("full")
    life.pace = Pace()
    await life.run_dry()
    # the last of them has two records
    tiers: Job = {"sink_tokens": 1, "body_tokens": 1, "window_tokens": 1}
    tiers |= dict.fromkeys(("window_start", "window_slot", "body_slot", "anchors"), 0)
    life.pace = Pace(elements=0.0)
    for number in range(IN_FLIGHT):
        leaving = number == IN_FLIGHT - 1
        life.plan(append=True, attend=False, leaving=leaving, tokens=3, **tiers)
    while len(life.rules.in_flight) < IN_FLIGHT or "handing_out" not in states(life, life.last):
        await life.step()
    await finish(life, 3 * IN_FLIGHT)


@cocotb.test()
async def ends_of_a_full_flight_wait(dut: HierarchyObject) -> None:
    """Let all outputs of a full flight leave before the first end is taken."""
    life = await start(dut)
    life.pace = Pace(ends=0.0)
    for _ in range(2 * IN_FLIGHT):
        life.plan(append=False, attend=True, leaving=False)
    while life.rules.progress.attended < IN_FLIGHT:
        await life.step()
    await finish(life, 2 * IN_FLIGHT)


@cocotb.test()
@cocotb.parametrize(part=(0, 1))
async def jobs_of_all_kinds(dut: HierarchyObject, part: int) -> None:
    """Run right and wrong jobs at any pace, without errors."""
    life = await start(dut)
    for _ in range(120):
        life.plan_any()
    while life.queue:
        life.pace = Pace.random(life.rng)
        for _ in range(100):
            await life.step()
    await finish(life, 120)
    if life.rules.restarts:
        raise Mismatch("a restart without an error")


@cocotb.test()
async def every_wrong_descriptor_everywhere(dut: HierarchyObject) -> None:
    """Run each wrong kind after a reset, an abort, a right and a wrong job; then a right job."""
    life = await start(dut)
    for kind in WRONG:
        for before in ("reset", "abort", "right", "wrong"):
            if before in ("reset", "abort"):
                await life.strike("reset" if before == "reset" else "read_slverr")
                await life.run_dry()
            else:
                life.plan("table_heads" if before == "wrong" else None)
            life.plan(kind)
            life.plan()
            await life.run_dry()
    await finish(life, 9 * len(WRONG))


@cocotb.test()
async def every_limit(dut: HierarchyObject) -> None:
    """Check that jobs at each limit are successful."""
    life = await start(dut)
    for limit in LIMITS.values():
        for _ in range(3):
            job = random_job(life.rng, life.config)
            while not limit.holds(life.config, job):
                job = random_job(life.rng, life.config)
            life.queue.append(job)
    await finish(life, 3 * len(LIMITS))


@cocotb.test()
async def refused_while_elements_are_owed(dut: HierarchyObject) -> None:
    """Check that blocks take the elements of the jobs before a refused job."""
    life = await start(dut)
    kinds = {wrong.status: kind for kind, wrong in WRONG.items()}
    for kind in kinds.values():
        for append, attend in ((False, False), (True, False), (False, True), (True, True)):
            life.pace = Pace(elements=0.05)
            life.plan(append=append, attend=attend, leaving=False)
            life.plan(kind)
            life.plan()
            await life.run_dry()
    await finish(life)


@cocotb.test()
async def every_event_in_every_state(dut: HierarchyObject) -> None:
    """Cause errors and resets in each state of the jobs."""
    life = await start(dut, endless=True)
    for event in (*ERRORS, "reset"):
        for state in STATES:
            life.endless = state not in ("full", "nothing")
            if not life.endless:
                await life.run_dry()
            if state == "full":
                await life.strike("reset")
                # the append never comes into memory, and so nothing behind it is read
                life.pace = Pace(elements=0.0)
                for number in range(IN_FLIGHT + 1):
                    life.plan(append=number == 0, attend=number > 0, leaving=False)
            await life.until(state)
            await life.strike(event)
            life.pace = Pace.random(life.rng)
            for _ in range(int(life.rng.integers(60))):
                await life.step()
    await finish(life)


@cocotb.test()
async def every_end_of_an_abort(dut: HierarchyObject) -> None:
    """Check that an abort waits for the memory, owed elements, outputs and ends."""
    life = await start(dut)
    read, append = {"attend": True}, {"append": True, "attend": False}
    for pace, jobs, state in (
        (Pace(read=40), [read], "reading"),
        (Pace(read=40, idle=0.05), [read], "reading"),
        (Pace(elements=0.05), [append], "appending"),
        (Pace(elements=0.05, read=40), [read], "reading"),
        (Pace(outputs=40), [read], "leaving"),
        (Pace(ends=0.05), [{}] * 4, "ending"),
    ):
        life.pace = pace
        for job in jobs:
            life.plan(None, **job)
        await life.until(state)
        await life.strike("write_slverr")
        life.plan()
        await life.run_dry()
    await finish(life, 12)


@cocotb.test()
async def end_changed_while_it_waited(dut: HierarchyObject) -> None:
    """Check that a finished job keeps status OK though its end waits until an abort."""
    life = await start(dut)
    life.pace = Pace(ends=0.0)
    life.plan(append=False, attend=False, leaving=False)
    await life.until("ending")
    await life.strike("read_slverr")
    for _ in range(20):
        await life.step()
    await finish(life)
    life.bench.check(life.rules.ended, [JobStatus.OK], "ends")


@cocotb.test()
@cocotb.parametrize(event=("read_slverr", "write_slverr", "reset"))
async def every_moment(dut: HierarchyObject, event: str) -> None:
    """Cause an error in each cycle of three jobs, then run three further jobs."""
    life = await start(dut)
    for moment in range(50):
        life.pace = Pace.random(life.rng) if moment % 2 else Pace()
        for kind in (None, "table_heads", None):
            life.plan(kind, append=True, attend=True)
        for _ in range(moment):
            await life.step()
        await life.strike(event)
        life.plan()
        await life.run_dry()
    await finish(life, 50)


@cocotb.test()
async def every_bin_was_hit(dut: HierarchyObject) -> None:
    """Check that all tests before this one have hit every bin of the coverage."""
    COVERAGE.finish(Path())
