"""Append path: what conditioning does to 16-bit integers, and the composed blocks."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import CONFIGS, check_bench

from golden.append_path import condition, records
from golden.conditioning import Conditioning
from golden.quantizer import quantize
from kvtq_hw.config import EngineConfig, load_config

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


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("append_path", config, simulator)
