"""Jobs and fetches of the record reader, with their records placed in a memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtq_hw.contract.layout import SIDES, Side
from sim.bench.bench import Bench
from sim.bench.records import Records, random_records

__all__ = [
    "TIERS",
    "Fetch",
    "Job",
    "Memory",
    "order",
    "random_fetch",
    "random_job",
]

TIERS = ("sinks", "body", "window")
PAGE = 4096


class Memory:
    """A memory's bytes, into which records are placed."""

    def __init__(self, bench: Bench, size: int = 1 << 19) -> None:
        self._bench = bench
        self.word = bench.config.memory_bits // 8
        self.data = bench.rng.integers(0, 256, size).astype(np.uint8)
        self._end = 0

    def place(self, records: NDArray[np.uint8]) -> int:
        """Write records at a word address, often just before a page's end; return the base."""
        base = self._end + self.word * int(self._bench.rng.integers(0, 3))
        if self._bench.rng.integers(3) == 0:
            to_page_end = -base % PAGE
            base += max(0, to_page_end - self.word * int(self._bench.rng.integers(1, 5)))
        self.data[base : base + records.size] = records.ravel()
        self._end = -(-(base + records.size) // self.word) * self.word
        if self._end > len(self.data):
            raise ValueError("the memory of the bench is full")
        return base


@dataclass(frozen=True)
class Job:
    """One job: its description, the addresses of its records, and its expected slices."""

    payload: dict[str, Any]
    records: dict[Side, list[Records]]  # in the order of reading
    tokens: int
    window_slot: int

    def slices(self, bench: Bench, side: Side) -> list[dict[str, Any]]:
        """Return the expected slices of the job's keys or values."""
        return [s for records in self.records[side] for s in records.slices(bench.config)]

    def newest(self, side: Side) -> list[slice]:
        """Return the bytes of the records that the job's append writes.

        These are the new anchor, or the record in the body's slot that is written, and the window's
        newest record.
        """
        sinks, body, window = self.records[side]
        bases = self.payload[side]
        found = []
        if self.payload["new_anchor"]:
            found.append((bases["sinks"], sinks, len(sinks) - 1))
        elif len(body):
            found.append((bases["body"], body, self.payload["body_slot"]))
        if len(window):
            found.append((bases["window"], window, self.window_slot))
        elif not len(body) and not found:
            found.append((bases["sinks"], sinks, len(sinks) - 1))
        return [_place(base, records, slot) for base, records, slot in found]


def _place(base: int, records: Records, slot: int) -> slice:
    size = records.data.shape[1]
    return slice(base + slot * size, base + (slot + 1) * size)


def random_job(
    bench: Bench,
    memory: Memory,
    counts: tuple[int, int, int] | None = None,
    planes: tuple[int, int, int] | None = None,
    residual: bool | None = None,
    appends: int = 0,
    body_slot: int | None = None,
    new_anchor: bool | None = None,
) -> Job:
    """Draw a job and place its records in memory.

    Parameters
    ----------
    counts : tokens in sinks, body and window
    planes : digits of the tiers, of keys in the body, and of values in the body
    body_slot : slot of the body that the job's append writes
    new_anchor : the append writes the last record of the sinks instead
    """
    rng, config = bench.rng, bench.config
    if counts is None:
        most = config.block + 6
        numbers = [int(rng.choice([0, 1, int(rng.integers(most))])) for _ in TIERS]
        counts = (numbers[0], numbers[1], max(numbers[2], int(not any(numbers))))
    tier, key, value = planes or rng.integers(1, config.max_planes + 1, 3).tolist()
    residual = bool(rng.integers(2)) if residual is None else residual
    full = counts[2] > 0 and rng.integers(2)
    start = int(rng.integers(counts[2])) if full else 0

    bases: dict[str, dict[str, int]] = {}
    records: dict[Side, list[Records]] = {}
    for side, digits in zip(SIDES, (key, value), strict=True):
        bases[side], records[side] = {}, []
        for name, count in zip(TIERS, counts, strict=True):
            in_body = name == "body"
            some = random_records(
                rng, config, side, count, digits if in_body else tier, in_body and residual
            )
            stored = np.roll(some.data, start, axis=0) if name == "window" else some.data
            bases[side][name] = memory.place(stored)
            records[side].append(some)
    if new_anchor is None:
        new_anchor = body_slot is None and counts[0] > 0 and bool(rng.random() < 0.3)
    if new_anchor:
        body_slot = counts[1]
    payload = {
        "key": bases["key"],
        "value": bases["value"],
        "tier_digits": tier,
        "key_digits": key,
        "value_digits": value,
        "residual": int(residual),
        "sink_tokens": counts[0],
        "body_tokens": counts[1],
        "window_tokens": counts[2],
        "window_start": start,
        "body_slot": _body_slot(rng, counts[1]) if body_slot is None else body_slot,
        "new_anchor": int(new_anchor),
        "appends": appends,
    }
    window_slot = int(rng.integers(counts[2])) if counts[2] else 0
    return Job(payload, records, sum(counts), window_slot)


def _body_slot(rng: np.random.Generator, count: int) -> int:
    """Draw the slot of the body that an append writes: the last, or any of a ring."""
    last = rng.integers(2) or not count
    return max(count - 1, 0) if last else int(rng.integers(count))


@dataclass(frozen=True)
class Fetch:
    """The fetch of one token that leaves a window: its description and the token's records."""

    payload: dict[str, int]
    records: dict[Side, Records]

    def place(self, side: Side) -> slice:
        """Return the bytes of the token's key or value record."""
        base = self.payload[f"{side}_window"]
        return _place(base, self.records[side], self.payload["slot"])


def random_fetch(bench: Bench, memory: Memory, appends: int = 0) -> Fetch:
    """Draw a fetch and place its windows in memory."""
    rng, config = bench.rng, bench.config
    count = int(rng.integers(1, 2 * config.block))
    slot, planes = int(rng.integers(count)), int(rng.integers(1, config.max_planes + 1))
    payload = {"slot": slot, "digits": planes, "appends": appends}
    records: dict[Side, Records] = {}
    for side in SIDES:
        window = random_records(rng, config, side, count, planes, False)
        payload[f"{side}_window"] = memory.place(window.data)
        records[side] = window.part(slot, slot + 1)
    return Fetch(payload, records)


def order(bench: Bench, jobs: list[Job]) -> list[str]:
    """Return the kind of each slice in order: K block 0, then K block i+1 before V block i."""
    sides: list[str] = []
    for job in jobs:
        slices: dict[str, list[int]] = {}
        for side in SIDES:
            each = [
                count
                for records in job.records[side]
                for count in records.slice_counts(bench.config)
            ]
            step = bench.config.block
            slices[side] = [sum(each[i : i + step]) for i in range(0, job.tokens, step)]
        turns = [("key", 0)]
        for block in range(len(slices["key"])):
            turns += [("key", block + 1)] * (block + 1 < len(slices["key"]))
            turns.append(("value", block))
        sides += [side for side, block in turns for _ in range(slices[side][block])]
    return sides
