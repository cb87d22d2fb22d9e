"""KV heads on an accelerator beside golden heads: jobs, expected results, recovery.

This is the host software in a simulation. It plans jobs ahead without knowing how they will end.
When all jobs have ended, `Heads.settle` compares outputs, statuses and memory with golden heads
that have run the successful jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from golden.accelerator import KvHead
from golden.anchors import Decision
from golden.cache.memory_image import MemoryImage
from golden.conditioning import Conditioning
from golden.engine import Attention
from golden.feedback import Feedback
from golden.learned_sinks import LearnedSinks
from golden.tables import anchor_words, load_words
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.contract.registers import JobStatus
from sim.bench.job_cases import WRONG, wrong_job
from sim.bench.scheduler_rules import IN_FLIGHT
from sim.bench.scoreboard import Mismatch
from sim.bench.stimulus import random_learned_sinks
from sim.host.descriptors import HeadDescriptors

__all__ = ["Heads", "Output", "Planned", "page_before"]

_PAGE = 4096


@dataclass(frozen=True)
class Planned:
    """A job that the host has planned.

    descriptor : fields by the names of `rtl.control.descriptor_layout`
    head : index of the job's head
    wrong : kind of `sim.bench.job_cases.WRONG`; None for a right descriptor
    vectors : int64 [2, D], for a job that appends, refused or not
    queries : int64 [G, D], for a job that attends
    """

    descriptor: dict[str, Any]
    head: int
    wrong: str | None
    vectors: NDArray[np.int64] | None
    queries: NDArray[np.int64] | None


@dataclass(frozen=True)
class Output:
    """Outputs of one job, int64 [G, D], and their exponent."""

    values: NDArray[np.int64]
    exponent: int


class Heads:
    """Golden heads and the memory that they share with an accelerator.

    Parameters
    ----------
    code : code of all heads
    count : number of KV heads
    tokens : most tokens per head
    base : base address of the memory
    rotate : whether keys, values and queries are rotated
    threshold : hits from which on a token becomes an anchor

    Attributes
    ----------
    memory : uint8, the bytes that the accelerator reads and writes
    unknown : heads whose value exponent and anchors the hardware does not know
    decisions : descriptor and decision of each job that appended
    """

    def __init__(
        self,
        config: EngineConfig,
        code: str,
        rng: np.random.Generator,
        *,
        count: int = 2,
        tokens: int = 24,
        base: int = 0x4000,
        rotate: bool = True,
        threshold: int = 0,
    ) -> None:
        self.config, self.rng = config, rng
        self._sinks_rng = rng.spawn(1)[0]  # jobs are the same with and without learned sinks
        self._learned_sinks = LearnedSinks(*torch.zeros(2, config.query_group).long())
        self.code = CacheCode.parse(code)
        self.layout = MemoryLayout(config, [self.code], count, tokens, base=base)
        self.memory = np.zeros(self.layout.bytes, np.uint8)
        dim = config.head_dim
        self._centres = torch.from_numpy(rng.integers(-9000, 9000, (count, dim)))
        self._feedback = [self._random_feedback(count) for _ in range(2)]
        self._rotate, self._threshold = rotate, threshold
        self._descriptors = [
            HeadDescriptors(
                self.layout,
                0,
                head,
                table=head,
                rotate=rotate,
                centre=True,
                anchor_threshold=threshold,
            )
            for head in range(count)
        ]
        self._golden = [self._golden_head(head) for head in range(count)]
        self._tokens = [0] * count  # including planned tokens
        self.unknown = set(range(count))
        self.decisions: list[tuple[dict[str, Any], Decision]] = []

    def _golden_head(self, head: int) -> KvHead:
        one = slice(head, head + 1)
        key, value = (Feedback(f.factors[one], f.shift[one]) for f in self._feedback)
        conditioning = Conditioning(self._rotate, self._centres[one], 0, 0, key, value)
        return KvHead(self.config, self.code, conditioning, self._threshold)

    def _random_feedback(self, heads: int) -> Feedback:
        dim = self.config.head_dim
        factors = torch.from_numpy(self.rng.integers(-4, 5, (heads, dim, dim)).astype(np.int8))
        shift = torch.from_numpy(self.rng.integers(0, 8, (heads, dim)))
        return Feedback(factors.triu(1), shift)

    def tables(self) -> Iterator[list[int]]:
        """Return packets of words that load the heads' tables."""
        return load_words(self.config, self._centres, self._feedback[0], self._feedback[1])

    def anchors(self, head: int) -> list[int]:
        """Return the packet of words that loads the anchors of a head as its golden head has them.

        Of a head without tokens, whatever its slots had before is right: these are random words.
        """
        golden, slots = self._golden[head], self.code.tiers.window
        noise = self.rng.integers(0, 256, slots + 1).tolist()
        hits = [golden.anchors.hits.get(slot, noise[slot]) for slot in range(slots)]
        return anchor_words(head, golden.anchors.count if golden.keys.tokens else noise[-1], hits)

    def tokens(self, head: int) -> int:
        """Return the number of tokens of a head, including planned tokens."""
        return self._tokens[head]

    # --- jobs -------------------------------------------------------------------------------------

    def random_vectors(self, count: int) -> NDArray[np.int64]:
        """Draw vectors of 16-bit elements [count, D]: Gaussian, with extremes, small, or zero."""
        dim = self.config.head_dim
        kind = self.rng.integers(0, 8)
        x = np.rint(self.rng.normal(0, 6000, (count, dim)))
        if kind == 0:
            x = self.rng.choice([-VECTOR_MAX - 1, VECTOR_MAX, 0], (count, dim))
        elif kind == 1:
            x = self.rng.integers(-3, 4, (count, dim))
        elif kind == 2:
            x = np.zeros((count, dim))
        return x.clip(-VECTOR_MAX - 1, VECTOR_MAX).astype(np.int64)

    def random_exponents(self) -> list[int]:
        """Draw query exponents under which scores spread over some octaves."""
        config = self.config
        middle = config.head_dim.bit_length() + 27 - config.score_fraction_bits
        return self.rng.integers(middle - 3, middle + 4, config.query_group).tolist()

    def _next_learned_sinks(self) -> LearnedSinks:
        """Draw others for one job in three: writing them takes time, and jobs should overlap."""
        if self._sinks_rng.random() < 1 / 3:
            drawn = random_learned_sinks(self._sinks_rng, self.config)
            self._learned_sinks = LearnedSinks(*torch.from_numpy(drawn))
        return self._learned_sinks

    def plan(
        self, head: int, *, append: bool = True, attend: bool = True, wrong: str | None = None
    ) -> Planned:
        """Plan the next job of a head; a wrong job leaves the head unchanged.

        Raises
        ------
        ValueError
            When the head is full, or has no token to attend to.
        """
        tokens = self._tokens[head] + (append and wrong is None)
        if not (tokens or wrong):
            raise ValueError(f"head {head} has no tokens")
        job = self._descriptors[head].job(
            max(tokens, 1),
            append=append,
            query_exponent=self.random_exponents() if attend else None,
            first=head in self.unknown,
            value_exponent=self._golden[head].value_exponent if head in self.unknown else 0,
            learned_sinks=self._next_learned_sinks() if attend else None,
        )
        if wrong:
            job = wrong_job(self.config, job, wrong)
        else:
            self.unknown.discard(head)
            self._tokens[head] = tokens
        group = self.config.query_group
        return Planned(
            job,
            head,
            wrong,
            self.random_vectors(2) if job["append"] else None,
            self.random_vectors(group) if job["attend"] else None,
        )

    # --- expected results -------------------------------------------------------------------------

    def settle(
        self,
        jobs: Sequence[Planned],
        outputs: Sequence[Output],
        errors: Sequence[dict[str, int]] = (),
        fault: JobStatus = JobStatus.OK,
    ) -> int:
        """Compare all results after all jobs have ended, and restore the heads of failed jobs.

        A job that attends is successful if and only if its outputs came, so the number of outputs
        tells how many jobs failed. If jobs may fail, all right jobs must attend. Failed jobs follow
        one another.

        Parameters
        ----------
        outputs : outputs of the jobs, in order
        errors : values of the register `first_error` before each time it was cleared; `job` counts
            from the first of `jobs`
        fault : status with which jobs may fail

        Returns
        -------
        int
            Number of right jobs that failed.

        Raises
        ------
        sim.bench.scoreboard.Mismatch
            When outputs, statuses or bytes of the memory differ from the expected ones.
        """
        right = [number for number, job in enumerate(jobs) if job.wrong is None]
        attending = [number for number in right if jobs[number].queries is not None]
        lost = len(attending) - len(outputs)
        if lost and (fault == JobStatus.OK or len(attending) < len(right)):
            raise Mismatch(f"{len(outputs)} outputs, expected {len(attending)}")
        if not 0 <= lost <= IN_FLIGHT:
            raise Mismatch(f"{lost} jobs failed")
        self._check_errors(jobs, errors, fault if lost else JobStatus.OK)
        first, known = self._first_failed(jobs, right, errors) if lost else (len(jobs), True)
        failed = [number for number in right if number >= first]
        spoiled: set[int] = set() if known else {jobs[number].head for number in failed}
        found = iter(outputs)
        for number in right:
            job = jobs[number]
            if known and number in failed[:lost]:
                spoiled.add(job.head)
                continue
            output = next(found, None) if job.queries is not None else None
            if job.head not in spoiled:
                self._do(number, job, output)
        self._compare_memory(spoiled)
        self.restore(spoiled)
        return lost

    @staticmethod
    def _check_errors(
        jobs: Sequence[Planned], errors: Sequence[dict[str, int]], fault: JobStatus
    ) -> None:
        """Check that every reported error is expected, and that the first error is reported."""
        refusals = {number: WRONG[job.wrong].status for number, job in enumerate(jobs) if job.wrong}
        for error in errors:
            number, status = error["job"], JobStatus(error["status"])
            # a refused job in flight may end with the status of the other jobs
            allowed = {refusals.get(number, fault), fault} - {JobStatus.OK}
            if status not in allowed:
                names = ", ".join(sorted(status.name for status in allowed))
                raise Mismatch(f"job {number} ended with {status.name}, expected {names or 'OK'}")
        if fault != JobStatus.OK and not errors:
            raise Mismatch(f"jobs failed, and no error was reported: {fault.name}")
        if refusals and (not errors or errors[0]["job"] > min(refusals)):
            raise Mismatch(f"job {min(refusals)} is refused, reported is {errors}")

    @staticmethod
    def _first_failed(
        jobs: Sequence[Planned], right: Sequence[int], errors: Sequence[dict[str, int]]
    ) -> tuple[int, bool]:
        """Return the number of the first right job that failed, and whether this number is exact.

        The number is not exact if only a refused job was reported: the failed job comes after it.
        """
        reported = [error["job"] for error in errors]
        for number in reported:
            if number in right:
                return number, True
        return min(reported), False

    def append(self, job: Planned) -> None:
        """Append a job's key and value to its golden head."""
        head = self._golden[job.head]
        head.append(*torch.from_numpy(job.vectors))
        self.decisions.append((job.descriptor, head.decision))

    def attend(self, job: Planned) -> Attention:
        """Return the attention of a job's queries over all tokens of its golden head."""
        exponents, *learned_sinks = (
            torch.tensor(job.descriptor[name])
            for name in ("query_exponent", "sink_maximum", "sink_weight")
        )
        return self._golden[job.head].attend(
            torch.from_numpy(job.queries), exponents, LearnedSinks(*learned_sinks)
        )

    def _do(self, number: int, job: Planned, output: Output | None) -> None:
        """Run a job on its golden head and compare the output."""
        if job.vectors is not None:
            self.append(job)
        if job.queries is None or output is None:
            return
        expected = self.attend(job)
        if not np.array_equal(output.values, expected.values[:, 0].numpy()):
            raise Mismatch(f"outputs of job {number}: {output.values}, expected {expected.values}")
        if output.exponent != int(expected.exponent[0]):
            raise Mismatch(
                f"exponent of job {number}: {output.exponent}, expected {expected.exponent[0]}"
            )

    def _compare_memory(self, spoiled: Iterable[int]) -> None:
        """Check that the memory equals the golden heads' image, except for spoiled heads."""
        image = self.image()
        for head in spoiled:
            for region in self._regions(head):
                image[region] = self.memory[region]
        wrong = np.flatnonzero(image != self.memory)
        if len(wrong):
            at = self.layout.base + int(wrong[0])
            raise Mismatch(f"{len(wrong)} bytes of the memory are wrong, the first at {at:#x}")

    def restore(self, heads: Iterable[int]) -> None:
        """Restore heads after failed jobs, as a host does: load golden heads into the memory."""
        image = self.image()
        for head in heads:
            for region in self._regions(head):
                self.memory[region] = image[region]
            self._tokens[head] = self._golden[head].keys.tokens
            self.unknown.add(head)

    def restore_all(self) -> None:
        """Restore all heads after a reset, and drop all planned jobs."""
        self.restore(range(len(self._golden)))
        self._compare_memory(())

    def image(self) -> NDArray[np.uint8]:
        """Return the bytes that the memory must have: what all golden heads have stored."""
        image = MemoryImage(self.layout)
        for index, head in enumerate(self._golden):
            if head.keys.tokens:
                head.store(image, 0, index)
                image.copy_forgotten(torch.from_numpy(self.memory), 0, index, head.keys.tokens)
        found: NDArray[np.uint8] = image.data.numpy()
        return found

    def _regions(self, head: int) -> Iterator[slice]:
        """Yield the slices of the memory that belong to a head."""
        layout = self.layout.heads[0][head]
        for vectors in (layout.key, layout.value):
            for region in vectors.regions.values():
                start = region.base - self.layout.base
                yield slice(start, start + region.bytes)


def page_before(config: EngineConfig, rng: np.random.Generator, size: int) -> int:
    """Draw a base for a memory of `size` bytes that holds the end of a 4 KiB page."""
    word = config.memory_bits // 8
    return 5 * _PAGE - word * int(rng.integers(1, max(2, min(size, _PAGE) // word)))
