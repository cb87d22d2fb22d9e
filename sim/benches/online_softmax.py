"""Bench of the online softmax: jobs around the block's length, with moving and equal maxima."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.online_softmax import online_softmax
from sim.bench.bench import STALL_MIXES, Bench

Payloads = list[dict[str, Any]]


def payloads(bench: Bench, jobs: list[np.ndarray]) -> tuple[Payloads, Payloads, Payloads]:
    """Return score payloads of jobs [T, G], and the golden model's weights and denominators."""
    config = bench.config
    scores, weights, sums = [], [], []
    for job in jobs:
        count = len(job)
        softmax = online_softmax(
            config,
            torch.from_numpy(job.T.copy())[:, None],
            torch.ones(1, count, dtype=torch.bool),
        )
        by_token = softmax.weights[0][:, 0].flatten(1)  # [G, N * B]
        for token, row in enumerate(job.tolist()):
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
    return scores, weights, sums


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
    jobs: list[np.ndarray],
    mixes: tuple[str, str, str] = ("none", "none", "none"),
) -> None:
    """Drive jobs back to back and compare weights and denominators."""
    scores, weights, sums = payloads(bench, jobs)
    bench.drive("i", scores, mixes[0])
    bench.expect("o", weights, mixes[1])
    bench.expect("sums", sums, mixes[2])
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check jobs around the block's length, with gaps and back-pressure on both outputs."""
    bench = await Bench.start(dut, "online_softmax")
    block = bench.config.block
    lengths = [1, block, int(bench.rng.integers(1, 2 * block + 1))]
    jobs = [random_scores(bench, count) for count in bench.rng.permutation(lengths)]
    await run(bench, jobs, (source, sink, sink))


@cocotb.test()
@cocotb.parametrize(kind=("random", "rising", "falling", "equal"))
async def maxima(dut: HierarchyObject, kind: str) -> None:
    """Check a maximum that rises with every block, falls with every block, or stays."""
    bench = await Bench.start(dut, "online_softmax")
    block = bench.config.block
    jobs = [random_scores(bench, count, kind) for count in (block - 1, 4 * block, 2 * block + 1)]
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
    _, weights, _ = payloads(bench, [job])
    raises = sum(payload.get("shifts", [0])[0] for payload in weights)
    bench.check(raises >= 2, True, "the sum raised the maximum")
    await run(bench, [job, random_scores(bench, 3)])


@cocotb.test()
async def extreme_scores(dut: HierarchyObject) -> None:
    """Check the smallest and largest score in both orders: largest rise, smallest weights."""
    bench = await Bench.start(dut, "online_softmax")
    config = bench.config
    low, high = -config.score_max - 1, config.score_max
    group = (1, config.query_group)
    columns = [[low], [high], [low] * config.block + [high], [high] * config.block + [low]]
    columns += [[low, high], [high, low], [low] * (config.block + 2)]
    jobs = [np.tile(np.array(column)[:, None], group) for column in columns]
    await run(bench, jobs)


@cocotb.test()
async def exact_cycles(dut: HierarchyObject) -> None:
    """Check a block's first weight `LATENCY` cycles after its last score, then one per cycle."""
    bench = await Bench.start(dut, "online_softmax")
    config, latency = bench.config, bench.component.LATENCY
    block = config.block
    await run(bench, [random_scores(bench, 2 * block)])
    scores, weights = bench.drivers["i"].cycles, bench.sinks["o"].cycles
    bench.check(scores, list(range(scores[0], scores[0] + 2 * block)), "cycles of the scores")
    first = scores[block - 1] + latency
    second = max(scores[-1], first + block - 1) + latency
    expected = [start + index for start in (first, second) for index in range(block)]
    bench.check(weights, expected, "cycles of the weights")
