"""A cycle-accurate reference of the scheduler, which checks the scheduler's ports.

The reference receives the ports of each cycle in order and raises `Mismatch` at the first fault.
`golden.scheduler` defines the contents of a job's parts and which descriptors are wrong. This
module defines when a part may come, when and how a job ends, and what an abort leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from golden.anchors import NO_DECISION, Decision
from golden.scheduler import job_parts, job_problem
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import SIDES
from kvtq_hw.contract.registers import JobStatus
from sim.bench.axi_memory import RESPONSES
from sim.bench.scoreboard import Mismatch
from sim.bench.streams import Payload

__all__ = ["ELEMENTS", "IN_FLIGHT", "PARTS", "Answer", "Cycle", "Errors", "Rules", "Taken"]

#: Most jobs that were taken, are right or refused, and have not ended.
IN_FLIGHT = 4
#: Names of a job's parts (`golden.scheduler`), with the names of the streams that carry them.
PARTS = {name: name for name in ("queries", "reads", "attends", "exponents", "fetches", "hits")} | {
    f"{side}_{part}": f"{side}__{part}" for part in ("tasks", "places") for side in SIDES
}
#: Elements that the host gives, with the descriptor field of the jobs that need them.
ELEMENTS = {"vectors": "append", "queries": "attend"}
_COUNTER = 16  # appends are counted modulo this
_OKAY = 0

Job = Mapping[str, Any]
Errors = tuple[int, int]  # responses of reader and writer


@dataclass(frozen=True)
class Answer:
    """The decision port in a cycle.

    asked : table, slot and `enters`, for the answer of the next cycle
    terms : leaving, anchors, threshold and `new`
    known : the answer may be taken
    decision : the answer
    taken : it is taken
    """

    asked: tuple[int, int, int]
    terms: tuple[int, int, int, int]
    known: bool
    decision: Decision
    taken: bool


@dataclass
class Taken:
    """A job that was taken and has not ended.

    Attributes
    ----------
    problem : status with which the job is refused, or OK
    entered : whether the job is in flight: its parts have been offered, its elements are owed, or
        the next descriptor has been taken
    decided : whether the job's decision on anchors has been taken
    doubtful : whether the job may have been in flight at an abort; the ports do not show this for a
        job that neither appends nor attends
    """

    job: Job
    problem: JobStatus
    entered: bool = False
    decided: bool = False
    doubtful: bool = False

    @property
    def right(self) -> bool:
        return self.problem == JobStatus.OK

    @property
    def asks(self) -> bool:
        """Return whether the job appends or attends: it has parts, or discarded elements."""
        return bool(self.job["append"] or self.job["attend"])


@dataclass(frozen=True)
class Part:
    """A payload that must come, and the condition under which it may come.

    append : number of the job's append since the last restart
    reads, fetches : reads and fetches that must be complete before the part may be offered
    last : whether the part is the last record of its append
    """

    bits: int
    compared: int
    append: int
    reads: int = 0
    fetches: int = 0
    last: bool = False


@dataclass
class Cycle:
    """The scheduler's ports in one cycle.

    job : the descriptor taken in this cycle
    parts : offered payloads, by stream
    taken : streams with a transfer, among the parts and `done`
    end : the payload of `done`, if valid
    owed : whether elements are owed, by name of `ELEMENTS`
    given : whether the host gave an element, by name of `ELEMENTS`
    pulses : job_read, fetch_read, attended, key__written, value__written
    appended : counters of keys and values
    answer : None where the hardware has no anchors
    """

    job: Job | None
    parts: dict[str, int]
    taken: set[str]
    end: int | None
    owed: dict[str, bool]
    given: dict[str, bool]
    pulses: dict[str, bool]
    appended: dict[str, int]
    appending: bool
    discard: bool
    cancel: bool
    restart: bool
    errors: Errors
    idle: bool
    output_begun: bool
    answer: Answer | None


@dataclass
class Progress:
    """Counts of events since the scheduler's last restart."""

    appends: int = 0
    attends: int = 0
    reads: int = 0  # jobs with a read that were handed out
    fetches: int = 0
    jobs_read: int = 0
    fetches_read: int = 0
    attended: int = 0
    ended_appends: int = 0
    ended_attends: int = 0
    records: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    whole: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))  # appends


class Rules:
    """The scheduler's reference.

    Parameters
    ----------
    packers : by part, a function from a payload to its bits and the mask of compared bits

    Attributes
    ----------
    in_flight : jobs that were taken and have not ended
    newest : the last job taken since reset; a refused job may have ended while its elements are
        still owed
    progress : counts since the last restart
    waiting : parts that must still come, by stream
    debts : numbers of elements that the host owes
    ended : statuses of all jobs that have ended
    restarts : number of restarts
    """

    def __init__(
        self, config: EngineConfig, packers: Mapping[str, Callable[[Payload], tuple[int, int]]]
    ) -> None:
        self._config = config
        self._packers = packers
        self.ended: list[JobStatus] = []
        self.restarts = 0
        self.reset()

    def reset(self) -> None:
        """Reset the reference with the scheduler: no job is known."""
        self.in_flight: deque[Taken] = deque()
        self.newest: Taken | None = None
        self._failing = 0  # jobs at the front that must end with `_failure`
        self._failure = JobStatus.OK
        self._errors: Errors = (_OKAY, _OKAY)  # in the previous cycle
        self._cancelled = False  # in the previous cycle
        self._offered: set[str] = set()  # offered but not taken in the previous cycle
        self._asked: tuple[int, int, int] | None = None  # in the previous cycle
        self._begin()

    def _begin(self) -> None:
        self.progress = Progress()
        self.waiting: dict[str, deque[Part]] = {name: deque() for name in PARTS}
        self._written: dict[str, deque[bool]] = {side: deque() for side in SIDES}
        self.debts = dict.fromkeys(ELEMENTS, 0)

    @property
    def handed_out(self) -> bool:
        """Return whether all parts of all jobs but `reads` have been taken."""
        return not any(parts for name, parts in self.waiting.items() if name != "reads")

    @property
    def refusing(self) -> bool:
        """Return whether the owed elements belong to a refused job."""
        newest = self.newest
        return newest is not None and newest.entered and not newest.right

    @property
    def _may_discard(self) -> bool:
        """Return whether elements may be discarded without an abort."""
        newest = self.newest
        waits = newest is not None and not newest.right and not any(self.debts.values())
        return self.refusing or waits

    @property
    def served(self) -> bool:
        """Return whether an append or a read of a job that has not ended is complete."""
        done = self.progress
        return max(done.whole.values()) > done.ended_appends or done.jobs_read > done.ended_attends

    def step(self, cycle: Cycle) -> None:
        """Check one cycle."""
        self._enter(cycle)
        self._check_levels(cycle)
        fell = self._offered - {*cycle.parts, *(["done"] if cycle.end is not None else [])}
        if fell and not (cycle.cancel and "done" not in fell):
            raise Mismatch(f"{sorted(fell)} fell before they were taken")
        for name, bits in cycle.parts.items():
            self._check_part(name, bits, name in cycle.taken, cycle.cancel)
        if cycle.end is not None:
            self._check_end(JobStatus(cycle.end), "done" in cycle.taken)
        self._count(cycle)
        if cycle.restart:
            self._restart(cycle)
        if cycle.answer is not None:
            self._decide(cycle.answer)
        if cycle.job is not None:
            self._take(cycle.job)
        self._errors, self._cancelled = cycle.errors, cycle.cancel and not cycle.restart
        self._offered = {*cycle.parts, *(["done"] if cycle.end is not None else [])} - cycle.taken

    # --- taking jobs ------------------------------------------------------------------------------

    def _take(self, job: Job) -> None:
        if self._failing:
            raise Mismatch("a job was taken before those that failed had ended")
        newest = self.newest
        if not self.handed_out or (newest and newest.asks and not newest.entered):
            raise Mismatch("a job was taken before the one before it was handed out")
        if newest:
            newest.entered = True
        self.newest = Taken(job, job_problem(self._config, job))
        self.in_flight.append(self.newest)
        if not job["anchors"]:
            has_anchors = self._config.anchor_slots > 0
            self._expect_parts(self.newest, NO_DECISION if has_anchors else None)

    def _decide(self, answer: Answer) -> None:
        """Check that each job with anchors takes one decision, of its own question."""
        newest, asked = self.newest, self._asked
        self._asked = answer.asked
        if not answer.taken:
            return
        if newest is None or not newest.right or newest.decided or not newest.job["anchors"]:
            raise Mismatch(f"a decision is taken, and no job needs one: {newest}")
        if not answer.known:
            raise Mismatch("a decision is taken that is not known")
        job = newest.job
        enters = bool(job["append"] and job["window_tokens"])
        # the slot has no meaning where no token comes to the window
        slot = job["window_slot"] if enters or asked is None else asked[1]
        question = job["table"], slot, int(enters)
        if asked != question:
            raise Mismatch(f"asked was {asked}, the job's question is {question}")
        new = int(job["body_tokens"] == job["leaving"])
        terms = int(job["leaving"]), job["anchors"], job["anchor_threshold"], new
        if answer.terms != terms:
            raise Mismatch(f"the terms are {answer.terms}, of the job {terms}")
        if answer.asked != asked:
            raise Mismatch(f"the question changed from {asked} to {answer.asked}")
        newest.decided = True
        self._expect_parts(newest, answer.decision)

    def _expect_parts(self, taken: Taken, decision: Decision | None) -> None:
        """Expect the parts of a job after the parts of earlier jobs."""
        if not taken.right:
            return
        job, done = taken.job, self.progress
        append = done.appends + job["append"]
        for name, payloads in job_parts(job, done.appends, decision).items():
            for number, payload in enumerate(payloads):
                bits, compared = self._packers[name](payload)
                place = name.endswith("_places")
                part = Part(
                    bits,
                    compared,
                    append,
                    reads=done.reads if place else 0,
                    fetches=done.fetches + job["leaving"] if place else 0,
                    last=number == job["leaving"],
                )
                self.waiting[name].append(part)

    def _enter(self, cycle: Cycle) -> None:
        """Note whether the newest job enters the flight in this cycle."""
        newest = self.newest
        if newest is None or newest.entered:
            return
        if newest.right:
            enters = newest.decided or "exponents" in cycle.parts
        else:
            enters = any(cycle.owed.values()) and not any(self.debts.values())
        if not enters:
            return
        newest.entered = True
        job, done = newest.job, self.progress
        for what, wanted in ELEMENTS.items():
            self.debts[what] += self._config.head_dim * bool(job[wanted])
        if newest.right:
            done.appends += job["append"]
            done.attends += job["attend"]
            done.reads += job["attend"]
            done.fetches += job["leaving"]

    # --- checks of every cycle --------------------------------------------------------------------

    def _check_levels(self, cycle: Cycle) -> None:
        done = self.progress
        owed = {what: debt > 0 for what, debt in self.debts.items()}
        if cycle.owed != owed:
            raise Mismatch(f"owed is {cycle.owed}, the host owes {self.debts}")
        if cycle.appended != {side: whole % _COUNTER for side, whole in done.whole.items()}:
            raise Mismatch(f"appended is {cycle.appended}, in memory are {done.whole}")
        if cycle.appending != any(whole != done.appends for whole in done.whole.values()):
            raise Mismatch(f"appending is {cycle.appending}: {done}")
        if self._cancelled and not cycle.cancel:
            raise Mismatch("an abort ended without a restart")
        if cycle.cancel and not self._cancelled:
            read, write = self._errors
            if not (read or write):
                raise Mismatch("an abort without an error")
            truncated = JobStatus.READ_TRUNCATED
            reading = truncated if read == RESPONSES["exokay"] else JobStatus.READ_ERROR
            self._failure = reading if read else JobStatus.WRITE_ERROR
        if cycle.discard and not cycle.cancel and not self._may_discard:
            raise Mismatch("elements are thrown away though a job wants them")
        if cycle.restart and not cycle.cancel:
            raise Mismatch("a restart without an abort")

    def _check_part(self, name: str, bits: int, taken: bool, cancel: bool) -> None:
        if cancel:
            raise Mismatch(f"{name} is offered during an abort")
        if not self.waiting[name]:
            raise Mismatch(f"{name} is offered, and no job that was taken has one")
        part, done = self.waiting[name][0], self.progress
        if (bits ^ part.bits) & part.compared:
            raise Mismatch(f"{name} is {bits:#x}, expected {part.bits:#x}")
        if done.jobs_read < part.reads:
            raise Mismatch(f"{name}: {done.jobs_read} of {part.reads} jobs before have been read")
        if done.fetches_read < part.fetches:
            raise Mismatch(f"{name}: the slot has not been fetched")
        if taken:
            self.waiting[name].popleft()
            if name.endswith("_places"):
                self._written[name.removesuffix("_places")].append(part.last)

    def _check_end(self, status: JobStatus, taken: bool) -> None:
        if not self.in_flight:
            raise Mismatch(f"a job ends with {status.name}, and none is in flight")
        first, done = self.in_flight[0], self.progress
        if first.asks and not first.entered:
            raise Mismatch(f"job {len(self.ended)} ends before it is in flight")
        fails = self._failing or (first.doubtful and status == self._failure)
        expected = self._failure if fails else first.problem
        if status != expected:
            raise Mismatch(f"job {len(self.ended)} ends with {status.name}, not {expected.name}")
        job = first.job
        if status == JobStatus.OK and not (
            (not job["append"] or min(done.whole.values()) > done.ended_appends)
            and (not job["attend"] or done.attended > done.ended_attends)
        ):
            raise Mismatch(f"job {len(self.ended)} ends well before everything is done")
        if not taken:
            return
        if status == JobStatus.OK:
            done.ended_appends += job["append"]
            done.ended_attends += job["attend"]
        self._failing = max(self._failing - 1, 0)
        self.in_flight.popleft()
        self.ended.append(status)

    def _count(self, cycle: Cycle) -> None:
        """Count the actions of the surrounding blocks, which show in the next cycle."""
        done = self.progress
        for what, given in cycle.given.items():
            self.debts[what] -= given
        done.jobs_read += cycle.pulses["job_read"]
        done.fetches_read += cycle.pulses["fetch_read"]
        done.attended += cycle.pulses["attended"]
        for side in SIDES:
            if cycle.pulses[f"{side}__written"]:
                done.records[side] += 1
                done.whole[side] += self._written[side].popleft()

    def _restart(self, cycle: Cycle) -> None:
        """Check a restart of the scheduler; a job that was not handed out is still to be done."""
        if not cycle.idle:
            raise Mismatch("a restart before the memory is idle")
        if any(cycle.owed.values()):
            raise Mismatch(f"a restart while the host owes {self.debts}")
        if cycle.output_begun:
            raise Mismatch("a restart while outputs leave")
        if cycle.end is not None and "done" not in cycle.taken:
            raise Mismatch("a restart while the end of a job waits")
        self.restarts += 1
        self._begin()
        self._failing = sum(taken.entered for taken in self.in_flight)
        if self.in_flight and not self.in_flight[-1].entered:
            kept = self.in_flight[-1]
            kept.doubtful = not (kept.asks or kept.job["anchors"])
            if not kept.job["anchors"]:
                has_anchors = self._config.anchor_slots > 0
                self._expect_parts(kept, NO_DECISION if has_anchors else None)
