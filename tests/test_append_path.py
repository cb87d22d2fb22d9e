"""Append path: what conditioning does to 16-bit integers, and the composed blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from bench_matrix import CONFIGS, FOLDER, check_bench

from golden.append_path import condition, records
from golden.conditioning import Conditioning
from golden.quantizer import quantize
from kvtq_hw.contract.config import EngineConfig, load_config
from sim.bench.append_cases import leaving_tasks, new_tasks, random_vectors, run_tasks
from sim.bench.vector_code import RULES, random_code, random_matrices
from sim.verilated.append_path import VerilatedAppendPath

TINY = load_config("tiny")


def test_condition_is_what_the_cache_does() -> None:
    """The same integers as `Conditioning` makes of a model's keys and values."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randint(-32767, 32768, (2, 3, 5, 8), generator=generator)
    centre = torch.randint(-32767, 32768, (3, 8), generator=generator)
    conditioning = Conditioning(True, centre, key_exponent=-9, value_exponent=-9)
    real = torch.ldexp(vectors.double(), torch.tensor(-9))
    keys = condition(vectors, centre[:, None], rotate=True)
    assert torch.equal(keys, conditioning.condition_keys(real)[0])
    assert torch.equal(condition(vectors, None, True), conditioning.condition_values(real)[0])
    assert torch.equal(condition(vectors, centre[:, None], False), vectors - centre[:, None])


def test_smallest_number_is_read_as_the_smallest_but_one() -> None:
    vectors = torch.full((1, 8), -(1 << 15))
    assert condition(vectors, None, False).tolist() == [[-32767] * 8]
    assert condition(-vectors - 1, vectors[0], False).tolist() == [[65534] * 8]


@pytest.mark.parametrize("kind", ["balanced", "residual"])
def test_exponent_of_a_record_is_the_largest_of_its_scales(kind: str) -> None:
    x = torch.tensor([[0] * 7 + [1000], [3] * 8, [0] * 8])
    planes = quantize(TINY, x, kind, 3, "max")
    _, exponents = records(TINY, planes, unit_first=True)
    first = planes.exponent[:, 0] if kind == "balanced" else planes.exponent.amax(-1)
    assert torch.equal(exponents, first)


#: (configuration, stalls of the five streams): 10,000 vectors each.
MANY = {
    "smollm2": (CONFIGS["smollm2"], (0, 0, 0, 0, 0)),
    "tiny, all streams stall": (TINY, (0.2, 0.3, 0.3, 0.3, 0.3)),
    "power-of-two": (CONFIGS["power-of-two"], (0, 0.1, 0.1, 0.4, 0)),
}


@pytest.mark.parametrize(("config", "stalls"), MANY.values(), ids=MANY)
def test_ten_thousand_vectors_of_every_kind(
    config: EngineConfig, stalls: tuple[float, ...]
) -> None:
    """Every rule with every number of digits, new and leaving, in a random order: equal bytes."""
    config = config.replace(table_heads=1)
    rng = np.random.default_rng(1)
    matrices = random_matrices(rng, config)
    centre = rng.integers(-(1 << 15), 1 << 15, config.head_dim)
    tasks = []
    kinds = list(itertools.product(RULES, range(1, config.max_planes + 1), (False, True)))
    for rule, digits, leaving in kinds * 5:
        code = random_code(rng, config, digits, rule)
        vectors = random_vectors(rng, config, 10000 // (5 * len(kinds)))
        if leaving:
            earlier = int(rng.integers(1, config.max_planes + 1))
            tasks += leaving_tasks(config, code, vectors, earlier, matrices)
        else:
            subtracted = centre if rng.integers(2) else None
            rotate = bool(rng.integers(2))
            tasks += new_tasks(config, code, vectors, matrices, subtracted, rotate)
    tasks = [tasks[n] for n in rng.permutation(len(tasks))]
    assert len(tasks) == 10000
    path = VerilatedAppendPath(config, cache=FOLDER)
    run = run_tasks(path, tasks, matrices, centre, stalls, seed=1)
    expected = np.concatenate([task.record for task in tasks])
    assert np.array_equal(run.records, expected)
    assert run.exponents.tolist() == [task.exponent for task in tasks]
    ends = np.cumsum([len(task.record) for task in tasks]) - 1
    assert np.flatnonzero(run.last).tolist() == ends.tolist()


def test_more_than_one_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^table_heads: 3 is not allowed; must be 1$"):
        VerilatedAppendPath(CONFIGS["odd"], cache=FOLDER)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("append_path", config, simulator)
