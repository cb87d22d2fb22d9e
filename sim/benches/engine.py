"""Bench of the whole engine: jobs of all shapes against the golden engine, with stalls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject
from numpy.typing import NDArray

from golden.engine import attend
from golden.learned_sinks import LearnedSinks
from golden.queries import Queries
from kvtq_hw.contract.cycle_model import uniform_job_cycles
from rtl.layouts import counters_layout
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import (
    Vectors,
    element_payloads,
    plain_trit_payloads,
    random_learned_sinks,
    random_planes,
    random_vectors,
)
from sim.bench.streams import unpack

Payloads = list[dict[str, Any]]


@dataclass(frozen=True)
class Job:
    """Inputs of one job: queries [G, D] with exponents [G], keys and values.

    `exponent` is the job's value exponent if larger than the exponent of every value. With
    `written_zeros` zero digits come in the encoding that hardware writes, otherwise in both
    encodings. `learned_sinks` are maxima and weights [2, G]; no head has one when None.
    """

    queries: NDArray[np.int64]
    query_exponent: NDArray[np.int64]
    keys: Vectors
    values: Vectors
    exponent: int | None = None
    written_zeros: bool = False
    learned_sinks: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        return len(self.keys.planes)

    @property
    def value_exponent(self) -> int:
        return self.values.largest_exponent if self.exponent is None else self.exponent


def random_job(
    bench: Bench,
    tokens: int,
    *,
    code: str = "any",
    planes: str = "mixed",
    spread: int | None = None,
    learned_sinks: bool = False,
) -> Job:
    """Draw a job whose scores spread over about `spread` octaves (any number if None).

    Parameters
    ----------
    learned_sinks : draw a learned sink of any height for about two heads of three
    """
    config, rng = bench.config, bench.rng
    limits = (0, (1 << config.scale_exponent_bits) - 1) if spread is None else (10, 12)
    vectors = [
        random_vectors(
            rng, config, random_planes(rng, config, tokens, planes), code=code, exponents=limits
        )
        for _ in range(2)
    ]
    shape = (config.query_group, config.head_dim)
    queries = rng.integers(-config.query_max, config.query_max + 1, shape)
    octaves = int(rng.integers(0, 9)) if spread is None else spread
    # the widest product comes out at about 2**octaves, before its scale's exponent
    exponent = config.product_bits - config.score_fraction_bits - octaves + limits[1]
    exponents = np.clip(exponent + rng.integers(-1, 2, config.query_group), -128, 127)
    job = Job(queries, exponents, vectors[0], vectors[1])
    return replace(job, learned_sinks=random_learned_sinks(rng, config)) if learned_sinks else job


def slices(bench: Bench, vectors: Vectors, kind: str, written_zeros: bool = False) -> Payloads:
    """Return the payloads of a job's key or value stream."""
    config = bench.config
    together = vectors.together(
        config.key_planes_per_cycle if kind == "key" else config.value_planes_per_cycle
    )
    elements = together.elements(config)
    if written_zeros and config.is_ternary:
        digits = plain_trit_payloads(elements)
    else:
        digits = element_payloads(bench.rng, config, elements)
    payloads = []
    for token, count in enumerate(together.counts.tolist()):
        order = range(count) if kind == "value" else reversed(range(count))
        for sent, plane in enumerate(order):
            scale = {
                "fraction": int(together.fraction[token, plane]),
                "exponent": int(together.exponent[token, plane]),
                "unit": int(together.unit[token, plane]),
                "last": int(sent == count - 1),
            }
            payloads += [{"elements": part, **scale} for part in digits[token][plane]]
    return payloads


async def run(
    bench: Bench, jobs: list[Job], mixes: tuple[str, str] = ("none", "none")
) -> dict[str, int]:
    """Run jobs back to back, compare outputs and counters, and return the counters."""
    config = bench.config
    source, sink = mixes
    descriptions, queries, outputs = [], [], []
    exponents = [{"value_exponent": job.value_exponent} for job in jobs]
    saturated = 0
    for job in jobs:
        sinks = job.learned_sinks
        if sinks is None:
            sinks = np.zeros((2, config.query_group), np.int64)
        descriptions.append(
            {
                "last_token": job.tokens - 1,
                "query_exponent": job.query_exponent.tolist(),
                "sink_maximum": sinks[0].tolist(),
                "sink_weight": sinks[1].tolist(),
            }
        )
        queries += [{"values": row} for row in job.queries.T.tolist()]
        attention = attend(
            config,
            Queries(
                torch.from_numpy(job.queries)[:, None],
                torch.from_numpy(job.query_exponent)[:, None],
            ),
            job.keys.golden(),
            job.values.golden(),
            exponent=torch.tensor([job.value_exponent]),
            learned_sinks=LearnedSinks(*torch.from_numpy(sinks)),
        )
        saturated += int(attention.saturated)
        values = attention.values[:, 0]
        outputs += [
            {"values": values[:, d].tolist(), "last": int(d == config.head_dim - 1)}
            for d in range(config.head_dim)
        ]
    keys = [
        payload for job in jobs for payload in slices(bench, job.keys, "key", job.written_zeros)
    ]
    values_stream = [
        payload for job in jobs for payload in slices(bench, job.values, "value", job.written_zeros)
    ]
    bench.drive("job", descriptions, source)
    bench.drive("value_exponent", exponents, source)
    bench.drive("query", queries, source)
    bench.drive("keys", keys, source)
    bench.drive("values", values_stream, source)
    bench.expect("output", outputs, sink)
    await bench.finish(cycles_per_transfer=100)
    counters = unpack(counters_layout(), bench.dut.counters.value.to_unsigned())
    expected = {
        "key_slices": len(keys),
        "value_slices": len(values_stream),
        "saturated_scores": saturated,
    }
    bench.check({name: counters[name] for name in expected}, expected, "counters")
    return counters


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check jobs around the block's length, with any runs, mixed planes, and stalls everywhere."""
    bench = await Bench.start(dut, "engine")
    block = min(bench.config.block, 8)
    lengths = [int(bench.rng.integers(1, block)), 1, int(bench.rng.integers(1, 2 * block + 2))]
    jobs = [random_job(bench, tokens, learned_sinks=True) for tokens in lengths]
    await run(bench, jobs, (source, sink))


@cocotb.test()
@cocotb.parametrize(code=("balanced", "residual", "any"), planes=("fewest", "most", "mixed"))
async def codes(dut: HierarchyObject, code: str, planes: str) -> None:
    """Check each code with the fewest planes, the most, and both in one sequence."""
    bench = await Bench.start(dut, "engine")
    jobs = [random_job(bench, bench.config.block + 2, code=code, planes=planes, spread=4)]
    await run(bench, jobs)


@cocotb.test()
async def lengths(dut: HierarchyObject) -> None:
    """Check contexts of one token, of whole blocks, and of one token less and more."""
    bench = await Bench.start(dut, "engine")
    block = bench.config.block
    tokens = (1, block - 1, block, block + 1, 2 * block, 3 * block + 1)
    await run(bench, [random_job(bench, count, planes="fewest", spread=5) for count in tokens])


@cocotb.test()
async def learned_sinks(dut: HierarchyObject) -> None:
    """Check learned sinks at, above and below all scores, in jobs of one token and of many.

    Jobs with and without learned sinks follow each other.
    """
    bench = await Bench.start(dut, "engine")
    config = bench.config
    one = 1 << config.weight_bits
    heights = (-config.ceiling_max, 1, 0, -1, config.ceiling_max)
    jobs = []
    for number, height in enumerate(heights):
        job = random_job(bench, 1 + number % 2 * config.block, planes="fewest", spread=3)
        sinks = np.full((2, config.query_group), ((height,), (one,)))
        plain = random_job(bench, 1 + number % 3, planes="fewest", spread=3)
        jobs += [replace(job, learned_sinks=sinks), plain]
    await run(bench, jobs)


@cocotb.test()
async def rising_maximum(dut: HierarchyObject) -> None:
    """Check keys whose scale doubles with every block, so that every block rescales."""
    bench = await Bench.start(dut, "engine")
    config = bench.config
    tokens = 4 * config.block
    job = random_job(bench, tokens, planes="fewest", spread=4)
    keys = job.keys
    keys.digits[:] = keys.digits[:1]
    keys.digits[:, 0] = np.where(job.queries[0] > 0, 1, -1)
    keys.exponent[:, 0] = 9 + np.arange(tokens) // config.block
    await run(bench, [job])


@cocotb.test()
async def flat_scores(dut: HierarchyObject) -> None:
    """Check equal keys and the largest values of one sign, until sums reach their limit."""
    bench = await Bench.start(dut, "engine")
    config = bench.config
    tokens = min(config.max_context, 7 * config.block)
    job = random_job(bench, tokens, planes="fewest", spread=4)
    job.keys.digits[:] = 0
    job.values.digits[:, 0] = -1
    job.values.fraction[:, 0] = (1 << config.scale_fraction_bits) - 1
    job.values.exponent[:, 0] = 12
    await run(bench, [job])


@cocotb.test()
async def zeros_and_one_sign(dut: HierarchyObject) -> None:
    """Check all-zero keys, values and queries, digits and queries of one sign, tiny scales."""
    bench = await Bench.start(dut, "engine")
    config = bench.config
    jobs = [random_job(bench, config.block + 1, planes="most", code="balanced") for _ in range(4)]
    jobs[0].keys.digits[:] = 0
    jobs[1].values.digits[:] = 0
    jobs[2].queries[:] = 0
    for part in (jobs[3].keys, jobs[3].values):
        part.digits[:] = 1
        part.exponent[part.unit] = (1 << config.scale_exponent_bits) - 1
    jobs[3].queries[:] = -config.query_max
    await run(bench, jobs)


@cocotb.test()
async def saturating_scales(dut: HierarchyObject) -> None:
    """Check scores that saturate at both limits, and the counter of saturated scores."""
    bench = await Bench.start(dut, "engine")
    job = random_job(bench, bench.config.block + 3, planes="most")
    job.query_exponent[:] = 0
    counters = await run(bench, [job])
    bench.check(counters["saturated_scores"] > 0, True, "some score saturated")


@cocotb.test()
@cocotb.parametrize(key_planes=(1, 3), value_planes=(1, 2))
async def cycle_model(dut: HierarchyObject, key_planes: int, value_planes: int) -> None:
    """Check that a job on streams without stalls takes the cycles of the cycle model."""
    bench = await Bench.start(dut, "engine")
    config = bench.config
    tokens = 2 * config.block + 1
    job = random_job(bench, tokens, spread=4)
    vectors = [
        random_vectors(
            bench.rng, config, np.full(tokens, planes), code="balanced", exponents=(10, 12)
        )
        for planes in (min(key_planes, config.max_planes), min(value_planes, config.max_planes))
    ]
    counters = await run(bench, [Job(job.queries, job.query_exponent, vectors[0], vectors[1])])
    planes = [int(part.planes[0]) for part in vectors]
    expected = uniform_job_cycles(config, tokens, *planes)
    bench.check(counters["busy_cycles"], expected, "busy cycles")
    bench.check(counters["stalled_cycles"], 0, "stalled cycles")
