"""Models of the blocks around the scheduler, on its pins: host, reader, writer, core, faults.

Each block takes random times. The ranges of these times change during a test, so that all
combinations occur: a slow host with a fast memory, reads that outlast appends, job ends that nobody
takes. `sim.bench.scheduler_rules` receives the transfers of every cycle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge
from cocotb.types import LogicArray

from golden.anchors import Decision
from kvtq_hw.contract.layout import SIDES
from rtl.verilog import interfaces, port_members
from sim.bench.bench import Bench
from sim.bench.scheduler_rules import ELEMENTS, PARTS, Answer, Cycle, Errors, Rules
from sim.bench.scoreboard import Mismatch, compared_bits
from sim.bench.streams import PERIOD_NS, packer

__all__ = ["Pace", "Surroundings"]

_HANG = 4000  # cycles without a job's end that count as a hang


@dataclass(frozen=True)
class Pace:
    """Speed of the blocks: probabilities per cycle, and upper limits in cycles.

    jobs, ends, parts, elements, idle, decisions : probabilities that a descriptor is offered, an
        end or a part is taken, an element is given, the memory becomes idle in an abort, or a
        decision on anchors is known
    read, write, fetch, core, outputs : most cycles of each operation
    """

    jobs: float = 1.0
    ends: float = 1.0
    parts: float = 1.0
    elements: float = 1.0
    idle: float = 1.0
    decisions: float = 1.0
    read: int = 1
    write: int = 1
    fetch: int = 1
    core: int = 1
    outputs: int = 1

    @classmethod
    def random(cls, rng: np.random.Generator) -> Pace:
        """Draw a pace."""
        chances = rng.choice((1.0, 0.7, 0.3, 0.1), 6).tolist()
        limits = rng.choice((1, 8, 40), 5).tolist()
        return cls(*chances, *limits)


class Surroundings:
    """One test of the scheduler: `start`, then jobs, errors and resets; `step` runs one cycle.

    Attributes
    ----------
    rules : sim.bench.scheduler_rules.Rules
    pace : Pace, which may be changed at any time
    queue : jobs not yet offered
    offering : the offered descriptor
    last : Cycle, the ports in the previous cycle
    busy : set of str
        Operations in progress: "fetch", "read", "core", "outputs", "write".
    """

    def __init__(self, dut: Any) -> None:
        self._dut = dut
        self.bench = bench = Bench(dut, "scheduler")
        self.config, self.rng = bench.config, bench.rng
        shapes = {
            port: member.signature.members["payload"].shape
            for port, member in interfaces(bench.component).items()
            if not member.is_port
        }
        self._parts = {name: port for name, port in PARTS.items() if port in shapes}
        packers = {name: compared_bits(shapes[port]) for name, port in self._parts.items()}
        self.rules = Rules(self.config, packers)
        self._pack_job = packer(shapes["jobs"])
        self.pace = Pace()
        self.queue: deque[dict[str, Any]] = deque()
        self._errors: Errors = (0, 0)
        self._pins = {name: dut[name] for name in port_members(bench.component)}
        self._driven: dict[str, bool] = {}  # levels of driven pins
        self._answer = False, Decision(False, 0)  # known, and the answer
        self._reset_state()

    def _reset_state(self) -> None:
        """Reset the state of the bench: nothing is in progress."""
        self.offering: dict[str, Any] | None = None
        self._waited = 0  # cycles without a job's end
        self._ready: set[str] = set()
        self._forget()

    def _forget(self) -> None:
        """Restart the blocks."""
        self._pulses = dict.fromkeys(
            ("job_read", "fetch_read", "attended", "key__written", "value__written"), False
        )
        self._given = dict.fromkeys(ELEMENTS, False)
        self._idle = self._begun = False
        self._countdown: dict[str, int] = {}
        # per record: number of its append, and cycles left
        self._writing: dict[str, deque[tuple[int, int]]] = {side: deque() for side in SIDES}
        self._asked: dict[str, deque[int]] = {"reads": deque(), "fetches": deque()}
        self._attends = 0

    @property
    def busy(self) -> set[str]:
        """Return the operations in progress."""
        return {*self._countdown, *(["write"] if any(self._writing.values()) else [])}

    async def start(self) -> None:
        """Start the clock and reset."""
        dut = self._dut
        dut.jobs__valid.value, dut.jobs__payload.value = 0, 0
        dut.read_error.value = dut.write_error.value = 0
        self._drive()
        Clock(dut.clk, PERIOD_NS, "ns").start(start_high=False)
        await self.reset()
        cocotb.start_soon(self._stop_at_cancel())

    async def reset(self) -> None:
        """Reset the scheduler and the blocks around it."""
        self._dut.rst.value = 1
        self.rules.reset()
        self._reset_state()
        self.fail((0, 0))
        self._dut.jobs__valid.value = 0
        self._drive()
        await ClockCycles(self._dut.clk, 1)
        self._dut.rst.value = 0

    def fail(self, errors: Errors) -> None:
        """Let reader and writer report these responses from the next cycle on."""
        self._errors = errors
        self._dut.read_error.value, self._dut.write_error.value = errors

    async def _stop_at_cancel(self) -> None:
        """Stop reader and writer in the cycle of `cancel`; they may be idle in the same cycle."""
        while True:
            await RisingEdge(self._dut.cancel)
            for name in ("job_read", "fetch_read", "key__written", "value__written"):
                self._pulses[name] = False
                self._set(name, False)
            self._idle = self._chance(self.pace.idle)
            self._set("idle", self._idle)

    # --- a cycle ----------------------------------------------------------------------------------

    async def step(self) -> Cycle:
        """Run one cycle and return the ports in it.

        Raises
        ------
        sim.bench.scoreboard.Mismatch
            When the scheduler breaks a rule, or no job ends for `_HANG` cycles though some must.
        """
        await RisingEdge(self._dut.clk)
        self.last = cycle = self._sample()
        self._take_parts(cycle)
        self.rules.step(cycle)
        if cycle.restart:
            self._forget()
        else:
            self._work(cycle)
        if cycle.idle and cycle.cancel:
            self.fail((0, 0))
        self._offer(cycle)
        self._drive()
        moves = cycle.end is not None or not self._unfinished
        self._waited = 0 if moves else self._waited + 1
        if self._waited > _HANG:
            raise Mismatch(f"no job ends any more: in flight are {list(self.rules.in_flight)}")
        return cycle

    @property
    def _unfinished(self) -> bool:
        """Return whether jobs or errors are pending."""
        jobs = self.queue or self.offering or self.rules.in_flight
        return bool(jobs) or any(self._errors)

    async def run_dry(self) -> None:
        """Step until every job has ended, and 20 cycles more, in which nothing may come."""
        while self._unfinished:
            await self.step()
        for _ in range(20):
            await self.step()

    def _sample(self) -> Cycle:
        pin, pins = self._pin, self._pins
        offered = {name: port for name, port in self._parts.items() if pin(f"{port}__valid")}
        end = pins["done__payload"].value.to_unsigned() if pin("done__valid") else None
        shown = {*offered, *(["done"] if end is not None else [])}
        return Cycle(
            job=self.offering if pin("jobs__ready") else None,
            parts={
                name: pins[f"{port}__payload"].value.to_unsigned() for name, port in offered.items()
            },
            taken=shown & self._ready,
            end=end,
            owed={what: pin(f"{what}_owed") for what in ELEMENTS},
            given=self._given,
            pulses=self._pulses,
            appended={side: pins[f"{side}__appended"].value.to_unsigned() for side in SIDES},
            **{name: pin(name) for name in ("appending", "discard", "cancel", "restart")},
            errors=self._errors,
            idle=self._idle,
            output_begun=self._begun,
            answer=self._sample_answer() if self.config.anchor_slots else None,
        )

    def _sample_answer(self) -> Answer:
        def number(name: str) -> int:
            pin = self._pins.get(f"decision__{name}")  # a field of zero bits has no pin
            return int(pin.value) if pin is not None and pin.value.is_resolvable else 0

        table, slot, enters = (number(name) for name in ("table", "slot", "enters"))
        leaving, anchors, threshold = (number(x) for x in ("leaving", "anchors", "threshold"))
        return Answer(
            (table, slot, enters),
            (leaving, anchors, threshold, number("new")),
            *self._answer,
            bool(number("taken")),
        )

    def _pin(self, name: str) -> bool:
        return bool(self._pins[name].value)

    def _drive(self) -> None:
        """Drive all inputs but descriptors and errors."""
        for name, port in (*self._parts.items(), ("done", "done")):
            self._set(f"{port}__ready", name in self._ready)
        for name, pulse in self._pulses.items():
            self._set(name, pulse)
        self._set("vector_taken", self._given["vectors"])
        self._set("query_taken", self._given["queries"])
        self._set("idle", self._idle)
        self._set("output_begun", self._begun)
        if self.config.anchor_slots:
            self._drive_answer()

    def _drive_answer(self) -> None:
        """Answer the question of the job that is to be handed out, or give any answer."""
        newest = self.rules.newest
        before, promoted = int(self.rng.integers(4)), bool(self.rng.integers(2))
        if newest is not None and newest.right and not newest.decided:
            settled = newest.job["body_tokens"] - newest.job["leaving"]
            before, promoted = min(before, settled), promoted and newest.job["leaving"]
        known = self._chance(self.pace.decisions)
        self._answer = known, Decision(bool(promoted), before)
        self._set("decision__known", known)
        self._set("decision__promoted", bool(promoted))
        self._pins["decision__before"].value = before

    def _set(self, name: str, level: bool) -> None:
        if self._driven.get(name) != level:
            self._driven[name] = level
            self._pins[name].value = int(level)

    def _chance(self, probability: float) -> bool:
        return probability == 1.0 or bool(self.rng.random() < probability)

    def _offer(self, cycle: Cycle) -> None:
        """Offer the next descriptor, and draw which ends and parts the next cycle takes."""
        dut = self._dut
        if cycle.job is not None:
            self.offering = None
            dut.jobs__valid.value = 0
        if self.offering is None and self.queue and self._chance(self.pace.jobs):
            self.offering = self.queue.popleft()
            width = len(dut.jobs__payload)
            dut.jobs__payload.value = LogicArray(self._pack_job(self.offering), width)
            dut.jobs__valid.value = 1
        self._ready = {name for name in self._parts if self._chance(self.pace.parts)}
        if self._read_failed:
            self._ready -= {"reads", "fetches", "attends"}
        if self._write_failed:
            self._ready -= {"key_places", "value_places"}
        if self._chance(self.pace.ends):
            self._ready.add("done")

    @property
    def _read_failed(self) -> bool:
        """Return whether the reader has failed: it stops, and the core gets no data."""
        return self._errors[0] != 0

    @property
    def _write_failed(self) -> bool:
        """Return whether the writer has failed: it stops."""
        return self._errors[1] != 0

    def _whole(self, what: str, jobs: int) -> int:
        """Return how many of `jobs` jobs handed out have received all their elements."""
        if self.rules.refusing:
            return jobs
        return jobs - -(-self.rules.debts[what] // self.config.head_dim)

    # --- the blocks' work -------------------------------------------------------------------------

    def _take_parts(self, cycle: Cycle) -> None:
        """Queue the work of the parts taken in this cycle."""
        for name, queue in self._asked.items():
            if name in cycle.taken and self.rules.waiting[name]:
                queue.append(self.rules.waiting[name][0].append - (name == "fetches"))
        self._attends += "attends" in cycle.taken
        for side, writing in self._writing.items():
            waiting = self.rules.waiting[f"{side}_places"]
            if f"{side}_places" in cycle.taken and waiting:
                writing.append((waiting[0].append, int(self.rng.integers(self.pace.write))))

    def _work(self, cycle: Cycle) -> None:
        """Decide the actions of the blocks in the next cycle."""
        self._pulses = dict.fromkeys(self._pulses, False)
        if cycle.cancel:
            self._idle = self._idle or self._chance(self.pace.idle)
        else:
            if not self._write_failed:
                self._write()
            if not self._read_failed:
                self._read()
        self._put_out(cycle)
        self._give(cycle)

    def _write(self) -> None:
        """Write the records whose elements have come."""
        whole = self._whole("vectors", self.rules.progress.appends)
        for side, writing in self._writing.items():
            if writing and writing[0][0] <= whole:
                append, left = writing.popleft()
                if left:
                    writing.appendleft((append, left - 1))
                else:
                    self._pulses[f"{side}__written"] = True

    def _read(self) -> None:
        """Run fetches and reads of jobs, each once the appends before it are complete."""
        appended = min(self.rules.progress.whole.values())
        for name, pulse in (("fetch", "fetch_read"), ("read", "job_read")):
            asked = self._asked["fetches" if name == "fetch" else "reads"]
            if name in self._countdown:
                self._pulses[pulse] = self._counted(name)
            elif asked and asked[0] <= appended:
                asked.popleft()
                self._countdown[name] = int(self.rng.integers(1, 1 + getattr(self.pace, name)))

    def _put_out(self, cycle: Cycle) -> None:
        """Run the core and send outputs; outputs that have begun leave even in an abort."""
        done = self.rules.progress
        if self._begun:
            if cycle.pulses["attended"]:
                self._begun = False
            elif self._counted("outputs"):
                self._pulses["attended"] = True
        elif cycle.cancel:
            return
        elif "core" in self._countdown:
            if self._counted("core"):
                self._begun = True
                self._countdown["outputs"] = int(self.rng.integers(1, 1 + self.pace.outputs))
        elif done.attended < min(
            self._attends, done.jobs_read, self._whole("queries", done.attends)
        ):
            self._countdown["core"] = int(self.rng.integers(1, 1 + self.pace.core))

    def _counted(self, name: str) -> bool:
        """Count a cycle of an operation; return whether it was the last one."""
        self._countdown[name] -= 1
        if self._countdown[name]:
            return False
        del self._countdown[name]
        return True

    def _give(self, cycle: Cycle) -> None:
        """Give elements that the host owes, if blocks take them or discard them."""
        wanted = cycle.discard or not (cycle.cancel or self.rules.refusing)
        self._given = {
            what: wanted and debt > 0 and self._chance(self.pace.elements)
            for what, debt in self.rules.debts.items()
        }
