"""Random jobs for the verilated engine, with the golden model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from golden.engine import Attention, attend
from golden.learned_sinks import LearnedSinks
from golden.queries import Queries
from kvtq_hw.contract.config import EngineConfig
from sim.bench.stimulus import Vectors, random_learned_sinks, random_vectors
from sim.verilated.engine import Job
from sim.verilated.slices import SliceBuffer


@dataclass(frozen=True)
class Case:
    """A job, its vectors, and its expected outputs [G, D]."""

    job: Job
    keys: Vectors
    values: Vectors
    expected: NDArray[np.int64]
    saturated: int


def make_case(
    config: EngineConfig,
    keys: Vectors,
    values: Vectors,
    queries: Queries,
    learned_sinks: NDArray[np.int64],
) -> Case:
    """Make a job over these vectors, for queries [G, 1, D] with learned sinks [2, G]."""
    key_buffer, value_buffer = SliceBuffer(config, "key"), SliceBuffer(config, "value")
    key_buffer.append(keys.golden(), keys.planes)
    value_buffer.append(values.golden(), values.planes)
    result: Attention = attend(
        config,
        queries,
        keys.golden(),
        values.golden(),
        learned_sinks=LearnedSinks(*torch.from_numpy(learned_sinks)),
    )
    job = Job(
        queries.values[:, 0].numpy(),
        queries.exponent[:, 0].numpy(),
        values.largest_exponent,
        key_buffer,
        value_buffer,
        learned_sinks,
    )
    return Case(job, keys, values, result.values[:, 0].numpy(), int(result.saturated))


def random_queries(rng: np.random.Generator, config: EngineConfig) -> Queries:
    """Draw queries over the whole range, with exponents for scores from tiny to saturating."""
    shape = (config.query_group, 1, config.head_dim)
    values = rng.integers(-config.query_max, config.query_max + 1, shape)
    middle = config.query_bits + 3 + (1 << (config.scale_exponent_bits - 1))
    exponents = middle + rng.integers(-8, 8, shape[:2])
    return Queries(torch.from_numpy(values), torch.from_numpy(exponents))


def random_case(
    seed: int,
    config: EngineConfig,
    key_planes: Sequence[int] | NDArray[np.int64],
    value_planes: Sequence[int] | NDArray[np.int64],
    code: str = "any",
) -> Case:
    """Make a job over random vectors with the given numbers of planes, and learned sinks."""
    rng = np.random.default_rng(seed)
    keys = random_vectors(rng, config, key_planes, code=code)
    values = random_vectors(rng, config, value_planes, code=code)
    queries = random_queries(rng, config)
    return make_case(config, keys, values, queries, random_learned_sinks(rng, config))
