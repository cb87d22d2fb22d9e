"""The cycle model, against the counter of the verilated engine."""

from __future__ import annotations

import numpy as np
import pytest

from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.cycle_model import bound_cycles, job_cycles, uniform_job_cycles
from rtl.accumulator_bank import AccumulatorBank
from rtl.key_lanes import KeyLanes
from rtl.normalizer import Normalizer
from rtl.online_softmax import OnlineSoftmax
from rtl.plane_scaler import PlaneScaler
from rtl.weight_scaler import WeightScaler
from sim.bench.cases import random_case
from sim.verilated.engine import VerilatedEngine

TINY = load_config("tiny")


def variant(**fields: object) -> EngineConfig:
    return TINY.replace(**fields)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        variant(lanes=8),
        variant(lanes=2, block=8),
        variant(head_dim=24, lanes=12, query_group=1),
        variant(lanes=8, key_planes_per_cycle=3, value_planes_per_cycle=2),
        variant(key_planes_per_cycle=2, value_planes_per_cycle=4),
        variant(lanes=8, scale_fraction_bits=0, max_context=32, output_fraction_bits=9),
    ],
    ids=lambda c: (
        f"D{c.head_dim}-L{c.lanes}-B{c.block}-R{c.reciprocal_bits}"
        f"-P{c.key_planes_per_cycle}{c.value_planes_per_cycle}"
    ),
)
def test_uniform_digits(config: EngineConfig) -> None:
    """Every number of tokens around block boundaries, every pair of digits from few to most."""
    with VerilatedEngine(config) as engine:
        for tokens in (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 32):
            for key_planes, value_planes in ((1, 1), (3, 2), (1, 5), (5, 1), (2, 4)):
                planes = [key_planes] * tokens, [value_planes] * tokens
                case = random_case(tokens, config, *planes, code="balanced")
                cycles = engine.run([case.job]).cycles
                model = uniform_job_cycles(config, tokens, key_planes, value_planes)
                assert cycles == model, (tokens, key_planes, value_planes)
                assert cycles > bound_cycles(config, tokens, key_planes, value_planes)


@pytest.mark.parametrize("planes_per_cycle", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_mixed_digits(seed: int, planes_per_cycle: int) -> None:
    rng = np.random.default_rng(seed)
    config = variant(lanes=8, key_planes_per_cycle=planes_per_cycle)
    tokens = int(rng.integers(1, 40))
    case = random_case(seed, config, rng.integers(1, 6, tokens), rng.integers(1, 6, tokens))
    with VerilatedEngine(config) as engine:
        cycles = engine.run([case.job]).cycles
    assert cycles == job_cycles(
        config, case.job.keys.block_slices(), case.job.values.block_slices()
    )


def test_steady_state_of_the_smollm2_engine() -> None:
    """Jobs of 1024 tokens back to back take at most 5 % more cycles than a slice per cycle needs.

    The last job's outputs, behind no other job, are included.
    """
    config = load_config("smollm2")
    case = random_case(0, config, [3] * 1024, [2] * 1024, code="balanced")
    with VerilatedEngine(config) as engine:
        alone, run = engine.run([case.job]), engine.run([case.job] * 3)
    for outputs in (*alone.outputs, *run.outputs):
        np.testing.assert_array_equal(outputs, case.expected)
    assert alone.cycles == uniform_job_cycles(config, 1024, 3, 2)
    assert 3 * 1024 * 5 < run.cycles <= 3 * 1.05 * bound_cycles(config, 1024, 3, 2)


def score_path(config: EngineConfig) -> int:
    """Cycles from the last key slice of a block to its first weight, by the blocks' own numbers."""
    return KeyLanes(config).latency + PlaneScaler.LATENCY + OnlineSoftmax.LATENCY


@pytest.mark.parametrize("config", [TINY, load_config("smollm2"), load_config("llama3-8b")])
def test_latencies_are_those_of_the_blocks(config: EngineConfig) -> None:
    """Lengthening a block must not be forgotten: one token's cycles hold the blocks' latencies."""
    normalizer = Normalizer(config)
    cycles = 1 + config.head_dim + config.slices + score_path(config) + config.slices
    cycles += 1 + normalizer.reciprocal_latency
    cycles += config.normalizer_turns * config.head_dim + normalizer.LATENCY
    assert uniform_job_cycles(config, 1, 1, 1) == cycles


def test_latencies_behind_a_rescale_are_those_of_the_blocks() -> None:
    """A last block of one slice, whose rescale takes longer than the reciprocal."""
    config = variant(lanes=8, query_group=1)
    block, dim = config.block, config.head_dim
    cycles = 1 + dim + block + score_path(config) + block
    cycles += OnlineSoftmax.LATENCY + config.slices * config.rescale_steps
    cycles += 1 + 1 + WeightScaler.LATENCY + AccumulatorBank.DRAIN_LATENCY
    cycles += config.normalizer_turns * dim + Normalizer.LATENCY
    assert config.rescale_steps > Normalizer(config).reciprocal_latency
    assert uniform_job_cycles(config, block + 1, 1, 1) == cycles


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        variant(lanes=8),
        variant(block=8, query_group=5),
        load_config("smollm2"),
        load_config("benchmarks/configs/smollm2-planes.toml"),
        load_config("benchmarks/configs/smollm2-8lanes-planes.toml"),
    ],
    ids=lambda c: f"{c.name}-{c.query_group}-{c.lanes}-{c.normalizer_turns}",
)
def test_outputs_are_hidden_behind_the_next_job(config: EngineConfig) -> None:
    """A job back to back costs the cycles up to its last value slice, and no more."""
    tokens = 2 * config.block
    case = random_case(1, config, [3] * tokens, [1] * tokens, code="balanced")
    normalizer = Normalizer(config)
    after_values = normalizer.reciprocal_latency + normalizer.LATENCY
    after_values += config.normalizer_turns * config.head_dim
    with VerilatedEngine(config) as engine:
        one, three = (engine.run([case.job] * jobs).cycles for jobs in (1, 3))
    assert three - one == 2 * (one - after_values)


@pytest.mark.parametrize(("keys", "values"), [([], []), ([4], []), ([4, 4], [4])])
def test_refusals(keys: list[int], values: list[int]) -> None:
    message = f"{len(keys)} key and {len(values)} value blocks; need as many, at least 1"
    with pytest.raises(ValueError, match=f"^{message}$"):
        job_cycles(TINY, keys, values)
