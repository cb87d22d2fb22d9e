"""Integer cache formats: the golden engine against the contract in plain Python integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench_matrix import INTEGER_CONFIGS

from kvtq_hw.contract.config import EngineConfig, config_from_fields, load_config
from kvtq_hw.contract.errors import UserError
from rtl.blocks import BLOCKS, blocks_of, create_block
from sim.bench.cases import random_case


def rounded(value: int, shift: int) -> int:
    return (value + (1 << shift >> 1)) >> shift if shift >= 0 else value << -shift


def clamped(value: int, bits: int) -> int:
    return max(-(1 << bits - 1), min((1 << bits - 1) - 1, value))


def attention(config: EngineConfig, case: Any, keys: Any, values: Any) -> list[list[int]]:
    """docs/contract.md, line by line, one head and one token at a time."""
    fraction, one = config.score_fraction_bits, 1 << config.scale_fraction_bits
    outputs = []
    for query, query_exponent, sink_maximum, sink_weight in zip(
        case.job.queries.tolist(),
        case.job.query_exponent.tolist(),
        *case.job.learned_sinks.tolist(),
        strict=True,
    ):
        scores = []
        for key, f, e in keys:
            product = sum(a * b for a, b in zip(query, key, strict=True)) * (one + f)
            scores.append(clamped(rounded(product, query_exponent - e), config.score_bits))
        maximum, total = None, 0
        if sink_weight >= 1 << config.weight_bits - 1:
            maximum, total = sink_maximum, sink_weight
        accumulators = [0] * config.head_dim
        for start in range(0, len(scores), config.block):
            block = scores[start : start + config.block]
            ceiling = max(-(-score // (1 << fraction)) for score in block)
            full = total >= max(config.block, config.max_context // 256) << config.weight_bits
            raised = ceiling if maximum is None else max(maximum + full, ceiling)
            shift = 0 if maximum is None else min(raised - maximum, config.accumulator_bits)
            maximum = raised
            total >>= shift
            accumulators = [value >> shift for value in accumulators]
            for score, (value, f, e) in zip(block, values[start:], strict=False):
                whole, part = divmod((maximum << fraction) - score, 1 << fraction)
                table = int((1 << config.weight_bits) * 2 ** (-part / (1 << fraction)) + 0.5)
                weight = rounded(table, whole)
                total += weight
                below = config.scale_fraction_bits + case.job.value_exponent - e
                scaled = rounded(weight * (one + f), below)
                accumulators = [a + scaled * v for a, v in zip(accumulators, value, strict=True)]
        leading = total.bit_length() - 1
        reciprocal = (1 << config.reciprocal_bits + leading) // total
        shift = config.reciprocal_bits + leading - config.output_fraction_bits
        outputs.append(
            [clamped(rounded(a * reciprocal, shift), config.output_bits) for a in accumulators]
        )
    return outputs


@pytest.mark.parametrize("name", INTEGER_CONFIGS)
@pytest.mark.parametrize("seed", range(12))
def test_golden_engine_is_the_contract(name: str, seed: int) -> None:
    config = INTEGER_CONFIGS[name]
    tokens = 1 + 3 * seed
    case = random_case(seed, config, [1] * tokens, [1] * tokens)
    vectors = []
    for planes in (case.keys, case.values):
        fields = (planes.digits[:, 0], planes.fraction[:, 0], planes.exponent[:, 0])
        vectors.append(list(zip(*(field.tolist() for field in fields), strict=True)))
    found = attention(config, case, *vectors)
    np.testing.assert_array_equal(case.expected, found)


def test_cases_reach_both_ends_of_the_integers_and_some_outputs() -> None:
    for config in INTEGER_CONFIGS.values():
        cases = [random_case(seed, config, [1] * 10, [1] * 10) for seed in range(16)]
        elements = np.concatenate([case.values.digits.ravel() for case in cases])
        assert elements.min() == -config.code_max
        assert elements.max() == config.code_max - 1
        assert sum(np.count_nonzero(case.expected) for case in cases) > 100


@pytest.mark.parametrize("preset", ["smollm2", "llama3-8b"])
def test_widths_of_integer_engines(preset: str) -> None:
    fields = load_config(preset).model_dump() | {"max_planes": 1}
    for name, bits in (("int8", 8), ("int4", 4)):
        config = config_from_fields(fields | {"cache_format": name})
        assert config.integer_bits == bits
        assert not config.is_ternary
        assert (config.element_min, config.element_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert config.code_max == 2 ** (bits - 1)
        assert config.sum_bits == len(f"{config.lanes * config.query_max * config.code_max:b}") + 1


def test_elements_of_ternary_planes_are_trits() -> None:
    config = load_config("smollm2")
    assert config.is_ternary
    assert (config.element_min, config.element_max) == (-1, 1)


def test_a_configuration_has_the_blocks_of_its_format() -> None:
    tiny = load_config("tiny")
    assert blocks_of(tiny) == BLOCKS
    integer = INTEGER_CONFIGS["int8"]
    assert blocks_of(integer) == (
        "query_buffer",
        "key_lanes",
        "plane_scaler",
        "online_softmax",
        "weight_scaler",
        "value_lanes",
        "normalizer",
        "sequencer",
        "engine",
    )
    several = tiny.replace(key_planes_per_cycle=2)
    assert blocks_of(several) == blocks_of(tiny)
    message = "^block: 'accelerator' does not exist in cache_format 'int8'$"
    with pytest.raises(UserError, match=message):
        create_block("accelerator", integer)
