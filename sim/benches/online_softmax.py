"""Bench of the online softmax: jobs around the block's length, with moving and equal maxima.

Jobs have learned sinks in some heads, anywhere above, among and below their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject
from cocotb.triggers import ClockCycles

from golden.learned_sinks import LearnedSinks
from golden.online_softmax import online_softmax
from sim.bench.bench import STALL_MIXES, Bench

Payloads = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """Scores [T, G] of a job, and maximum and weight [G] of its learned sinks."""

    scores: np.ndarray
    sink_maximum: np.ndarray
    sink_weight: np.ndarray


def payloads(bench: Bench, jobs: Sequence[Job]) -> dict[str, Payloads]:
    """Return the payloads of jobs by port: inputs, and the golden model's outputs."""
    config = bench.config
    starts, scores, weights, sums = [], [], [], []
    for job in jobs:
        count = len(job.scores)
        softmax = online_softmax(
            config,
            torch.from_numpy(job.scores.T.copy())[:, None],
            torch.ones(1, count, dtype=torch.bool),
            LearnedSinks(torch.from_numpy(job.sink_maximum), torch.from_numpy(job.sink_weight)),
        )
        starts.append(
            {"sink_maximum": job.sink_maximum.tolist(), "sink_weight": job.sink_weight.tolist()}
        )
        by_token = softmax.weights[0][:, 0].flatten(1)  # [G, N * B]
        for token, row in enumerate(job.scores.tolist()):
            block, index = divmod(token, config.block)
            job_end = token == count - 1
            scores.append(
                {
                    "scores": row,
                    "saturated": int(bench.rng.integers(1 << config.query_group)),
                    "block_end": int(index == config.block - 1 or job_end),
                    "job_end": int(job_end),
                }
            )
            weight = {
                "weights": by_token[:, token].tolist(),
                "block_start": int(index == 0),
                "job_start": int(token == 0),
                "job_end": int(job_end),
            }
            if index == 0:
                weight["shifts"] = softmax.shifts[:, 0, block].tolist()
            weights.append(weight)
        sums.append({"sums": softmax.sums[:, 0].tolist()})
    return {"starts": starts, "i": scores, "o": weights, "sums": sums}


def random_job(bench: Bench, count: int, kind: str = "random") -> Job:
    """Draw a job with scores of a kind and, in about two heads of three, a learned sink."""
    config, rng = bench.config, bench.rng
    scores = random_scores(bench, count, kind)
    ceilings = -(-scores >> config.score_fraction_bits)
    largest = ceilings.max(0)
    lowest = -1 << (config.maximum_bits - 1)
    maximum = rng.choice(
        [
            largest,  # as the largest score
            ceilings[0],  # as the first score
            largest + rng.integers(-3, 4, largest.shape),
            largest + rng.integers(lowest, -lowest, largest.shape) // 4,
            rng.integers(lowest, -lowest, largest.shape),
        ]
    ).clip(lowest, -lowest - 1)
    half = 1 << (config.weight_bits - 1)
    weight = rng.choice(
        [
            rng.integers(half, 2 * half + 1, largest.shape),  # what a logit gives
            rng.integers(4 * half, size=largest.shape),  # any
            rng.choice([0, half - 1, half, 2 * half, 4 * half - 1], largest.shape),
        ]
    )
    return Job(scores, maximum, np.where(rng.random(largest.shape) < 0.7, weight, 0))


def plain_job(bench: Bench, scores: np.ndarray) -> Job:
    """Return a job without learned sinks; its maxima, which mean nothing, are random."""
    group = bench.config.query_group
    half = 1 << (bench.config.maximum_bits - 1)
    return Job(scores, bench.rng.integers(-half, half, group), np.zeros(group, np.int64))


def random_scores(bench: Bench, count: int, kind: str = "random") -> np.ndarray:
    """Draw the scores [T, G] of one job.

    "random" has scores of all magnitudes; "rising" and "falling" have a maximum that moves by more
    than an octave with every block; "equal" has equal scores; "flat" has nearly equal scores, with
    a few later scores an octave higher.
    """
    config, rng = bench.config, bench.rng
    shape = (count, config.query_group)
    scores = rng.integers(-config.score_max - 1, config.score_max + 1, shape)
    scores >>= rng.integers(0, config.score_bits, (1, config.query_group))
    block = np.arange(count)[:, None] // config.block
    octave = 1 << config.score_fraction_bits
    if kind == "rising":
        scores = -4 * octave + (scores % octave) + block * (octave + octave // 2)
    elif kind == "falling":
        scores = 4 * octave + (scores % octave) - block * (octave + octave // 2)
    elif kind == "flat":
        scores = (scores % 3) + np.where(np.arange(count) > count * 3 // 4, octave, 0)[:, None]
    elif kind == "equal":
        scores = np.broadcast_to(scores[:1], shape)
    return np.clip(scores, -config.score_max - 1, config.score_max)


async def run(
    bench: Bench,
    jobs: Sequence[Job],
    mixes: tuple[str, str, str, str] = ("none", "none", "none", "none"),
) -> None:
    """Drive jobs back to back and compare weights and denominators.

    Parameters
    ----------
    mixes : stalls of `starts`, `i`, `o` and `sums`
    """
    streams = payloads(bench, jobs)
    for port, mix in zip(streams, mixes, strict=True):
        (bench.drive if port in bench.drivers else bench.expect)(port, streams[port], mix)
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check jobs around the block's length, with gaps and back-pressure on both outputs."""
    bench = await Bench.start(dut, "online_softmax")
    block = bench.config.block
    lengths = [1, block, int(bench.rng.integers(1, 2 * block + 1))]
    jobs = [random_job(bench, count) for count in bench.rng.permutation(lengths)]
    await run(bench, jobs, (source, source, sink, sink))


@cocotb.test()
@cocotb.parametrize(kind=("random", "rising", "falling", "equal"))
async def maxima(dut: HierarchyObject, kind: str) -> None:
    """Check a maximum that rises with every block, falls with every block, or stays."""
    bench = await Bench.start(dut, "online_softmax")
    block = bench.config.block
    lengths = (block - 1, 4 * block, 2 * block + 1)
    jobs = [random_job(bench, count, kind) for count in lengths]
    jobs += [plain_job(bench, random_scores(bench, count, kind)) for count in lengths]
    await run(bench, jobs)


@cocotb.test()
@cocotb.parametrize(kind=("equal", "flat"))
async def full_sums(dut: HierarchyObject, kind: str) -> None:
    """Check flat contexts so long that the sum of weights raises the maximum several times."""
    bench = await Bench.start(dut, "online_softmax")
    config = bench.config
    tokens = min(config.max_context, 16 * config.block)
    job = random_scores(bench, tokens, kind)
    job[:, 0] = 0  # with an integer score every weight is one, and the sum meets its limit exactly
    plain = plain_job(bench, job)
    raises = sum(payload.get("shifts", [0])[0] for payload in payloads(bench, [plain])["o"])
    bench.check(raises >= 2, True, "the sum raised the maximum")
    await run(bench, [plain, random_job(bench, 3), random_job(bench, tokens, kind)])


@cocotb.test()
async def extreme_scores(dut: HierarchyObject) -> None:
    """Check the smallest and largest score in both orders: largest rise, smallest weights."""
    bench = await Bench.start(dut, "online_softmax")
    config = bench.config
    low, high = -config.score_max - 1, config.score_max
    group = (1, config.query_group)
    columns = [[low], [high], [low] * config.block + [high], [high] * config.block + [low]]
    columns += [[low, high], [high, low], [low] * (config.block + 2)]
    jobs = [plain_job(bench, np.tile(np.array(column)[:, None], group)) for column in columns]
    await run(bench, jobs)


@cocotb.test()
@cocotb.parametrize(sink=("none", "slow"))
async def extreme_learned_sinks(dut: HierarchyObject, sink: str) -> None:
    """Check each learned sink from the lowest to the highest beside scores of all heights.

    Jobs of one token and of several blocks follow each other.
    """
    bench = await Bench.start(dut, "online_softmax")
    config = bench.config
    half, one = 1 << (config.maximum_bits - 1), 1 << config.weight_bits
    maxima = (-half, -config.ceiling_max, -1, 0, config.ceiling_max, half - 1)
    jobs = []
    for maximum in maxima:
        for height in (-config.score_max - 1, 0, config.score_max):
            for weight in (one // 2, one):
                count = int(bench.rng.choice([1, config.block, 2 * config.block + 1]))
                scores = np.full((count, config.query_group), height)
                jobs.append(Job(scores, *np.full((2, config.query_group), ((maximum,), (weight,)))))
    await run(bench, jobs, ("none", "none", sink, sink))


@cocotb.test()
async def starts_of_no_consequence(dut: HierarchyObject) -> None:
    """Check that weights below one half are no learned sinks, whatever their maximum."""
    bench = await Bench.start(dut, "online_softmax")
    config = bench.config
    scores = random_scores(bench, config.block + 1)
    plain = payloads(bench, [plain_job(bench, scores)])
    half = 1 << (config.maximum_bits - 1)
    weights = (0, 1, (1 << (config.weight_bits - 1)) - 1)
    jobs = [
        Job(scores, *np.full((2, config.query_group), ((maximum,), (weight,))))
        for maximum in (-half, 0, half - 1)
        for weight in weights
    ]
    found = payloads(bench, jobs)
    bench.check(found["o"], plain["o"] * len(jobs), "the golden model's weights")
    await run(bench, jobs)


@cocotb.test()
async def late_start(dut: HierarchyObject) -> None:
    """Check that two blocks of scores are taken before a job's start, and no weight is given."""
    bench = await Bench.start(dut, "online_softmax")
    block, latency = bench.config.block, bench.component.LATENCY
    streams = payloads(bench, [random_job(bench, 3 * block), random_job(bench, 1)])
    bench.drive("i", streams["i"])
    bench.expect("o", streams["o"])
    bench.expect("sums", streams["sums"])
    await ClockCycles(dut.clk, 3 * block + latency)
    bench.check(len(bench.drivers["i"].cycles), 2 * block, "scores taken before the start")
    bench.check(bench.sinks["o"].cycles, [], "weights given before the start")
    bench.drive("starts", streams["starts"])
    await bench.finish()
    first = bench.drivers["starts"].cycles[0]
    bench.check(bench.sinks["o"].cycles[0], first + latency - 1, "cycle of the first weight")


@cocotb.test()
async def exact_cycles(dut: HierarchyObject) -> None:
    """Check a block's first weight `LATENCY` cycles after its last score, then one per cycle."""
    bench = await Bench.start(dut, "online_softmax")
    config, latency = bench.config, bench.component.LATENCY
    block = config.block
    await run(bench, [random_job(bench, 2 * block)])
    scores, weights = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    bench.check(scores, list(range(scores[0], scores[0] + 2 * block)), "cycles of the scores")
    first = scores[block - 1] + latency
    second = max(scores[-1], first + block - 1) + latency
    expected = [start + index for start in (first, second) for index in range(block)]
    bench.check(weights, expected, "cycles of the weights")
