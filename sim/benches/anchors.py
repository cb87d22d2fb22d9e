"""Bench of the anchors: hits and decisions of random jobs of several heads, at any pace.

Every cycle is compared with a reference: when a decision is known, what it is, and when words and
tasks are taken. The required coverage is declared here: a bin without a hit fails the bench.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cocotb
import numpy as np
from amaranth.hdl import Shape
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge
from cocotb.types import LogicArray
from numpy.typing import NDArray

from golden.anchors import HIT_STEPS, MOST_HITS, Decision, HeadAnchors, sum_steps, window_hits
from golden.tables import anchor_words
from kvtq_hw.contract.config import EngineConfig
from rtl.verilog import interfaces
from sim.bench.bench import Bench
from sim.bench.coverage import Coverage, Cross, Point
from sim.bench.scoreboard import Mismatch
from sim.bench.streams import packer

_PATIENCE = 2000  # cycles

COVERAGE = Coverage(
    "anchors",
    [
        Point(
            "score",
            "A score of a token that may get hits, against the reference before.",
            {
                "first": "There is none before.",
                "above": "It is larger.",
                "margin": "It is as far below as a score with a hit may be.",
                "beyond": "It is one further below.",
                "far": "It is the smallest one, the reference at least the largest.",
            },
        ),
        Point(
            "apart",
            "Half octaves between a score and the reference before, above or below.",
            {f"{way} {n}": f"{n}." for way in ("above", "below") for n in range(17)},
        ),
        Point(
            "gain",
            "Half octaves of a score below the reference that counts it.",
            {str(n): f"{n}." for n in range(len(HIT_STEPS) + 1)},
        ),
        Point(
            "window",
            "The window of a job.",
            {
                "empty": "It has no token.",
                "one": "One, which gets no hit.",
                "wraps": "It is read from a slot behind its first one.",
                "most": "It has as many tokens as there are slots.",
            },
        ),
        Point(
            "settled",
            "The tokens before the window.",
            {"none": "None.", "sinks": "Sinks alone.", "body": "No sinks.", "both": "Both."},
        ),
        Point(
            "hits",
            "Hits of the leaving token at a decision.",
            {
                "below": "One less than the threshold.",
                "at": "As many as the threshold.",
                "most": "As many as are counted.",
            },
        ),
        Point(
            "places",
            "Places for anchors at a decision.",
            {"none": "No more.", "last": "One.", "more": "More.", "new": "The context is new."},
        ),
        Point(
            "question",
            "What the job does that asks.",
            {
                "attends": "It appends nothing.",
                "enters": "A token comes to a window that is not full.",
                "leaving": "A token leaves the window.",
            },
        ),
        Point(
            "under_way",
            "Scores that are still to come in the cycle of a question.",
            {
                "none": "None.",
                "same": "Of an earlier job of the head.",
                "second": "Of the second job to come, which is of the head.",
                "other": "Of jobs of other heads alone.",
                "uncounted": "Of a job of the head that gives no hits.",
            },
        ),
        Point(
            "collision",
            "What meets the hits of a score.",
            {"question": "A question.", "word": "A word of the load stream."},
        ),
    ],
    [Cross("wait", "Each question in each case.", ("question", "under_way"))],
)


@dataclass
class Job:
    """A job: its task, its scores [tokens][G], and how many of the scores have been given."""

    task: dict[str, int]
    scores: NDArray[np.int64]
    given: int = 0

    @property
    def first_in_window(self) -> int:
        return len(self.scores) - self.task["window_tokens"]

    @property
    def gives_hits(self) -> bool:
        """Whether the next score is of a token that may get hits."""
        last = self.given == len(self.scores) - 1
        return bool(self.task["counted"]) and self.given >= self.first_in_window and not last


@dataclass(frozen=True)
class Question:
    """What a job asks, by the names of the port."""

    table: int
    slot: int
    enters: int
    leaving: int
    anchors: int
    threshold: int
    new: int

    @property
    def kind(self) -> str:
        return "leaving" if self.leaving else "enters" if self.enters else "attends"

    def decide(self, head: HeadAnchors) -> Decision:
        """Return the golden decision of a head."""
        return head.decide(
            leaving=bool(self.leaving),
            slot=self.slot if self.enters else None,
            new=bool(self.new),
            anchors=self.anchors,
            threshold=self.threshold,
        )


QUESTION = tuple(Question.__annotations__)


class Surroundings:
    """Core, scheduler and host around the block, and its reference; `step` runs one cycle.

    Attributes
    ----------
    heads : golden anchors
    jobs : jobs whose tasks have been taken and whose scores have not all been given
    offered : the job whose task is offered, or None
    pace : probability of a score per cycle
    question : what is asked, or None
    haste : probability per cycle that a decision that is known is taken
    decisions : number of decisions taken
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.dut = bench, bench.dut
        self.config, self.rng = bench.config, bench.rng
        self.heads = [HeadAnchors() for _ in range(self.config.table_heads)]
        self.jobs: deque[Job] = deque()
        self.offered: Job | None = None
        self.words: deque[dict[str, int]] = deque()
        self.pace = self.haste = 1.0
        self.question: Question | None = None
        self.decisions = 0
        shapes = {
            name: member.shape if member.is_port else member.signature.members["payload"].shape
            for name, member in interfaces(bench.component).items()
        }
        self._pack = {name: packer(shapes[name]) for name in ("tasks", "load", "scores")}
        self._ports = [name for name in QUESTION if Shape.cast(shapes[f"decision__{name}"]).width]
        self._driven: Question | None = None  # in this cycle
        self._asked: Question | None = None  # in the cycle before
        self._known = False  # the question of the cycle before has an answer
        self._busy = False  # hits of a score are written
        self._scoring = self._taking = self._wording = self._offering = False
        self._edge = RisingEdge(self.dut.clk)

    @classmethod
    async def start(cls, dut: HierarchyObject) -> Surroundings:
        """Reset the block and load the state of all heads, at random: memories hold anything."""
        world = cls(await Bench.start(dut, "anchors"))
        world.load(0, [world.random_state() for _ in world.heads])
        await world.run()
        return world

    # --- what is done -----------------------------------------------------------------------------

    def random_state(self) -> HeadAnchors:
        """Draw a number of anchors, and hits of all slots; many hits are near the most."""
        slots, most = self.config.anchor_slots, MOST_HITS
        few = self.rng.integers(2, size=slots)
        hits = np.where(
            few, self.rng.integers(4, size=slots), most - self.rng.integers(3, size=slots)
        )
        return HeadAnchors(int(self.rng.integers(4)), dict(enumerate(hits.tolist())))

    def load(self, first: int, states: list[HeadAnchors], extra: int = 0) -> None:
        """Load heads from `first` on in one packet, with `extra` words behind it."""
        slots = range(self.config.anchor_slots)
        packets = [
            anchor_words(first + place, state.count, [state.hits[slot] for slot in slots])
            for place, state in enumerate(states)
        ]
        self.heads[first : first + len(states)] = states
        words = [packets[0][0], *(word for packet in packets for word in packet[1:])]
        self.send(words + [0xFFFFFFFF] * extra)

    def send(self, packet: list[int]) -> None:
        """Send a packet of words."""
        self.words.extend({"first": n == 0, "data": word} for n, word in enumerate(packet))

    async def run(self, until: Callable[[], bool] | None = None) -> None:
        """Step until a condition, or until nothing is left to do."""
        for _ in range(_PATIENCE):
            if until() if until else not (self.jobs or self.words or self.offered or self.question):
                return
            await self.step()
        raise Mismatch(f"nothing more happens: {self.question}, {len(self.jobs)} jobs")

    async def decide(self, question: Question) -> None:
        """Ask a question, and wait until the decision has been taken."""
        self.question = question
        await self.run(lambda: self.question is None)

    async def give(self, job: Job) -> None:
        """Offer a job's task, and wait until it is taken."""
        self.offered = job
        await self.run(lambda: self.offered is None)

    def forget(self) -> None:
        """Forget jobs under way, as a restart does."""
        self.jobs.clear()
        self.offered = self._driven = self._asked = None
        self._busy = self._known = self._scoring = False

    async def check_hits(self) -> None:
        """Compare the hits of every slot of every head by two questions that are not taken."""
        self.haste = 0.0
        for table, head in enumerate(self.heads):
            for slot, hits in head.hits.items():
                for threshold in (hits, hits + 1)[: 1 + (hits < MOST_HITS)]:
                    self.question = Question(table, slot, 1, 1, 1, threshold, 1)
                    for _ in range(3):  # it is asked, and answered
                        await self.step()
        self.question, self.haste = None, 1.0

    # --- a cycle ----------------------------------------------------------------------------------

    async def step(self) -> None:
        """Run a cycle and compare; then choose the inputs of the next one."""
        await self._edge
        job = self.jobs[0] if self._scoring else None
        gains = job is not None and job.gives_hits
        self._check_decision()
        self._sample_question(gains)
        self._known = not gains and not self._waits
        self._asked = self._driven
        if self._taking:
            self.question = self._driven = None
        self._check_word()
        self._check_task()
        if job is not None:
            self._give_score(job)
        self._busy = gains
        self._drive()

    @property
    def _waits(self) -> bool:
        """Return whether the question must wait for hits."""
        question = self._driven
        return question is not None and any(
            question.enters and job.task["counted"] and job.task["table"] == question.table
            for job in self.jobs
        )

    def _check_decision(self) -> None:
        question = self._driven
        if question is None or question is not self._asked:
            return
        found = bool(self.dut.decision__known.value)
        if found != self._known:
            raise Mismatch(f"known is {found}: {question}")
        if not found:
            return
        head = self.heads[question.table]
        before = HeadAnchors(head.count, dict(head.hits))
        decision = question.decide(head)
        answer = (
            bool(self.dut.decision__promoted.value),
            self.dut.decision__before.value.to_unsigned(),
        )
        if answer != decision:
            raise Mismatch(f"{question}: {answer}, expected {decision}")
        if not self._taking:
            self.heads[question.table] = before
            return
        self.decisions += 1
        if question.leaving:
            self._sample_decision(question, before)

    def _check_word(self) -> None:
        ready = bool(self.dut.load__ready.value)
        if ready == (self._busy or self._taking):
            raise Mismatch(f"load: ready is {ready}")
        if self._wording:
            if self._busy:
                COVERAGE.sample(collision="word")
            if ready:
                self.words.popleft()
                self._wording = False

    def _check_task(self) -> None:
        ready = bool(self.dut.tasks__ready.value)
        if ready != (len(self.jobs) < 2):
            raise Mismatch(f"tasks: ready is {ready} with {len(self.jobs)} tasks")
        if self.offered is not None and self._offering and ready:
            self.jobs.append(self.offered)
            self.offered = None

    def _give_score(self, job: Job) -> None:
        job.given += 1
        if job.given < len(job.scores):
            return
        self.jobs.popleft()
        if job.task["counted"]:
            window = job.task["window_tokens"]
            hits = window_hits(self.config, job.scores.T.tolist(), job.task["sink_tokens"], window)
            self.heads[job.task["table"]].add(hits, job.task["window_start"])

    def _drive(self) -> None:
        dut, rng = self.dut, self.rng
        for name in self._ports:
            handle = dut[f"decision__{name}"]
            # where nothing is asked, anything may be there
            asked = self.question and getattr(self.question, name)
            handle.value = int(rng.integers(1 << len(handle))) if asked is None else asked
        same = self.question is not None and self.question is self._asked
        self._driven = self.question
        self._taking = same and self._known and bool(rng.random() < self.haste)
        dut.decision__taken.value = int(self._taking)
        self._scoring = bool(self.jobs) and bool(rng.random() < self.pace)
        self._offering = self.offered is not None
        self._wording = self._wording or (bool(self.words) and bool(rng.random() < 0.8))
        self._put("tasks", self.offered.task if self.offered else None)
        self._put("load", self.words[0] if self._wording else None)
        job = self.jobs[0] if self._scoring else None
        width = len(dut.scores)
        noise = sum(int(rng.integers(2)) << n for n in range(width)) & ~1
        if job is not None:
            last = job.given == len(job.scores) - 1
            fields = {"valid": 1, "scores": job.scores[job.given].tolist(), "job_end": int(last)}
            noise = self._pack["scores"](fields)
        dut.scores.value = LogicArray(noise, width)

    def _put(self, port: str, payload: dict[str, int] | None) -> None:
        """Offer a payload on a stream, or nothing."""
        self.dut[f"{port}__valid"].value = int(payload is not None)
        if payload is not None:
            handle = self.dut[f"{port}__payload"]
            handle.value = LogicArray(self._pack[port](payload), len(handle))

    # --- coverage ---------------------------------------------------------------------------------

    def _sample_question(self, gains: bool) -> None:
        question = self._driven
        if question is None or question is self._asked:
            return
        if gains:
            COVERAGE.sample(collision="question")
        own = [job.task["table"] == question.table for job in self.jobs]
        counted = [bool(job.task["counted"]) for job in self.jobs]
        case = "other" if own else "none"
        if any(own):
            place = own.index(True)
            case = ("same", "second")[place] if counted[place] else "uncounted"
        COVERAGE.sample(question=question.kind, under_way=case)

    def _sample_decision(self, question: Question, head: HeadAnchors) -> None:
        free = question.anchors - head.count
        places = "none" if free <= 0 else "last" if free == 1 else "more"
        COVERAGE.sample(places="new" if question.new else places)
        hits = head.hits[question.slot]
        found = {"below": question.threshold - 1, "at": question.threshold, "most": MOST_HITS}
        for name, number in found.items():
            if hits == number:
                COVERAGE.sample(hits=name)


def random_job(
    world: Surroundings,
    table: int,
    *,
    window: int | None = None,
    counted: bool = True,
    sinks: int | None = None,
    body: int | None = None,
) -> Job:
    """Draw a job of a head, with scores around the limit of a hit."""
    rng, config = world.rng, world.config
    slots = config.anchor_slots
    if window is None:
        window = int(rng.choice([0, 1, slots, int(rng.integers(slots + 1))]))
    if sinks is None:
        sinks = int(rng.choice([0, 1, 3]))
    if body is None:
        body = int(rng.choice([0, 1, 6]))
    sinks += not (sinks or body or window)
    start = int(rng.integers(window)) if window else 0
    task = {
        "counted": int(counted),
        "table": table,
        "sink_tokens": sinks,
        "settled_tokens": sinks + body,
        "window_tokens": window,
        "window_start": start,
    }
    scores = np.empty((sinks + body + window, config.query_group), np.int64)
    for g in range(config.query_group):
        scores[:, g] = random_scores(world, sinks, body, window)
    return Job(task, scores)


def random_scores(world: Surroundings, sinks: int, body: int, window: int) -> list[int]:
    """Draw the scores of a query head."""
    rng, config = world.rng, world.config
    most = config.score_max
    octave = 1 << config.score_fraction_bits
    margin = margin_of(config)
    middle = int(rng.choice([0, most - 3, 3 - most, int(rng.integers(-most, most))]))
    reference: int | None = None
    scores = []
    for token in range(sinks + body + window):
        near = middle if reference is None else reference
        kinds = {
            "above": near + 1 + int(rng.integers(3)),
            "margin": near - margin,
            "beyond": near - margin - 1,
            "equal": near,
            "near": near + int(rng.integers(-9 * octave, 9 * octave)),
            "low": -most - 1,
            "high": most,
        }
        weights = (0.1, 0.15, 0.15, 0.1, 0.4, 0.05, 0.05)
        score = kinds[str(rng.choice(list(kinds), p=weights))]
        score = max(-most - 1, min(most, score))
        watched = not sinks <= token < sinks + body
        if sinks + body <= token < sinks + body + window - 1:
            sample_score(config, reference, score)
        if watched:
            reference = next_reference(config, reference, score)
        scores.append(score)
    return scores


def next_reference(config: EngineConfig, reference: int | None, score: int) -> int:
    """Return the reference that counts a score."""
    if reference is None:
        return score
    steps = sum_steps(config)
    apart = 2 * abs(score - reference) >> config.score_fraction_bits
    return max(score, reference) + steps[min(apart, len(steps) - 1)]


def margin_of(config: EngineConfig) -> int:
    """Return how far below the reference before it a score with a hit may be."""
    most = 8 << config.score_fraction_bits
    below = [next_reference(config, 0, -apart) + apart for apart in range(most)]
    hit = [2 * x >> config.score_fraction_bits < len(HIT_STEPS) for x in below]
    return most - 1 - hit[::-1].index(True)


def sample_score(config: EngineConfig, reference: int | None, score: int) -> None:
    """Count how a score of a token that may get hits compares."""
    below = next_reference(config, reference, score) - score
    gain = 2 * below >> config.score_fraction_bits
    COVERAGE.sample(gain=str(min(gain, len(HIT_STEPS))))
    if reference is None:
        COVERAGE.sample(score="first")
        return
    apart = 2 * abs(score - reference) >> config.score_fraction_bits
    way = "above" if score > reference else "below"
    COVERAGE.sample(apart=f"{way} {min(apart, 16)}")
    found = {
        "above": score > reference,
        "margin": score == reference - margin_of(config),
        "beyond": score == reference - margin_of(config) - 1,
        "far": score == -config.score_max - 1 and reference >= config.score_max,
    }
    for name, holds in found.items():
        if holds:
            COVERAGE.sample(score=name)


def sample_job(world: Surroundings, job: Job) -> None:
    """Count the shape of a job that gives hits."""
    task = job.task
    window, sinks = task["window_tokens"], task["sink_tokens"]
    if not task["counted"]:
        return
    names = {
        "empty": window == 0,
        "one": window == 1,
        "wraps": task["window_start"] > 0,
        "most": window == world.config.anchor_slots,
    }
    for name, holds in names.items():
        if holds:
            COVERAGE.sample(window=name)
    body = task["settled_tokens"] - sinks
    COVERAGE.sample(settled=("none", "sinks", "body", "both")[(sinks > 0) + 2 * (body > 0)])


def random_question(world: Surroundings, table: int, kind: str | None = None) -> Question:
    """Draw a question of a head; thresholds are near the hits, places nearly full."""
    rng, head = world.rng, world.heads[table]
    slot = int(rng.integers(world.config.anchor_slots))
    kind = kind or str(rng.choice(["attends", "enters", "leaving", "leaving"]))
    threshold = head.hits[slot] + int(rng.integers(-1, 2))
    return Question(
        table,
        slot,
        int(kind != "attends"),
        int(kind == "leaving"),
        max(head.count + int(rng.integers(-1, 3)), 1),
        min(max(threshold, 0), MOST_HITS),
        int(rng.random() < 0.1),
    )


@cocotb.test()
@cocotb.parametrize(pace=(1.0, 0.5, 0.05), tables=(1, 2, 4))
async def jobs_of_heads(dut: HierarchyObject, pace: float, tables: int) -> None:
    """Run jobs of some heads as the scheduler does: decision, then task, then the next job."""
    world = await Surroundings.start(dut)
    rng = world.rng
    world.pace, world.haste = pace, float(rng.choice([1.0, 0.3]))
    for _ in range(60):
        table = int(rng.integers(min(tables, len(world.heads))))
        counted = bool(rng.random() < 0.8)
        if counted or rng.random() < 0.5:
            await world.decide(random_question(world, table))
        if rng.random() < 0.8:
            job = random_job(world, table, counted=counted)
            sample_job(world, job)
            await world.give(job)
    await world.run()
    await world.check_hits()


@cocotb.test()
async def every_question_in_every_case(dut: HierarchyObject) -> None:
    """Ask each question with nothing to come, and with scores of the same and of other heads."""
    world = await Surroundings.start(dut)
    for kind in ("attends", "enters", "leaving"):
        for tables in ((), (0,), (1, 0), (1,), (1, 1)):
            for counted in (True, False):
                for table in tables:
                    world.pace = 0.0
                    await world.give(random_job(world, table, counted=counted))
                world.pace = 0.3
                await world.decide(random_question(world, 0, kind))
                await world.run()
    await world.check_hits()


@cocotb.test()
async def a_score_in_every_cycle(dut: HierarchyObject) -> None:
    """Check that scores of jobs back to back, one per cycle, give all hits; questions still end."""
    world = await Surroundings.start(dut)
    slots = world.config.anchor_slots
    for table in (0, 1, 0, 1, 0, 0):
        job = random_job(world, table, window=slots, sinks=1, body=0)
        await world.give(job)
        if table:
            world.question = random_question(world, 2, "leaving")
    await world.run()
    await world.check_hits()


@cocotb.test()
async def hits_stop_at_the_most(dut: HierarchyObject) -> None:
    """Add hits to tokens that have nearly or exactly the most."""
    world = await Surroundings.start(dut)
    slots = world.config.anchor_slots
    for count in (MOST_HITS - 1, MOST_HITS):
        world.load(0, [HeadAnchors(0, dict.fromkeys(range(slots), count))])
        await world.run()
        for _ in range(3):
            job = random_job(world, 0, window=slots, sinks=0)
            job.scores[:] = 7  # equal scores: hits from every query head
            await world.give(job)
            await world.run()
        await world.check_hits()
        await world.decide(Question(0, 0, 1, 1, 1, MOST_HITS, 0))
        await world.decide(Question(0, 0, 1, 1, 9, 1, 0))


@cocotb.test()
async def loading_beside_scores(dut: HierarchyObject) -> None:
    """Load heads in any pieces while scores of another head come in every cycle."""
    world = await Surroundings.start(dut)
    config = world.config
    last = len(world.heads) - 1
    for number in range(8):
        for _ in range(2):
            await world.give(random_job(world, 0, window=config.anchor_slots))
        first = 1 + number % last
        count = int(world.rng.integers(1, last - first + 2))
        world.load(first, [world.random_state() for _ in range(count)])
        world.question = random_question(world, 0)
        await world.run()
        await world.check_hits()


@cocotb.test()
async def nonsense_is_ignored(dut: HierarchyObject) -> None:
    """Check that other sections, unknown heads, and words past the last head change nothing."""
    world = await Surroundings.start(dut)
    last = len(world.heads) - 1
    world.load(last, [world.random_state()], extra=3 * world.config.anchor_slots)
    for section in (0, 1, 4, 6, 7):
        world.send([section, *[3] * 9])
    for head in (last + 1, last + 9, 1 << 20, (1 << 29) - 1):
        world.send([5 | head << 3, *[3] * 9])
    short = world.random_state()
    world.send([5, short.count, short.hits[0]])  # the other slots keep their hits
    world.heads[0].count, world.heads[0].hits[0] = short.count, short.hits[0]
    await world.run()
    await world.check_hits()
    for table in range(last + 1):
        await world.decide(random_question(world, table, "attends"))


@cocotb.test()
async def restart_forgets_tasks(dut: HierarchyObject) -> None:
    """Check that a restart forgets jobs under way, and no state of another head."""
    world = await Surroundings.start(dut)
    for number in range(12):
        world.pace = 0.0
        for table in (0, 0):
            await world.give(random_job(world, table))
        world.pace = 1.0
        for _ in range(number):
            await world.step()
        world.pace = 0.0
        await world.step()
        dut.restart.value = 1
        await RisingEdge(dut.clk)
        dut.restart.value = 0
        world.forget()
        await world.decide(random_question(world, 1))
        world.load(0, [world.random_state()])
        await world.run()
        world.pace = 1.0
        await world.give(random_job(world, 0, window=world.config.anchor_slots))
        await world.run()
        await world.check_hits()


@cocotb.test()
async def every_bin_was_hit(dut: HierarchyObject) -> None:
    """Check that all tests before this one have hit every bin of the coverage."""
    await Surroundings.start(dut)
    COVERAGE.finish(Path())
