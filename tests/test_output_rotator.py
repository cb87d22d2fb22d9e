"""The output rotator: the inverse of the values' rotation, exactly."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import SHAPES, check_bench, every_shape

from golden.conditioning import Conditioning
from golden.hadamard import hadamard
from golden.output_rotator import output_rotator
from kvtq_hw.contract.config import EngineConfig


def random_outputs(config: EngineConfig) -> torch.Tensor:
    limit = 1 << (config.output_bits - 1)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-limit, limit, (2, 3, 5, config.head_dim), generator=generator)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rotate", [False, True])
def test_it_is_what_conditioning_undoes_in_floats(config, rotate):
    outputs, exponent = random_outputs(config), torch.randint(-9, 9, (2, 3, 5))
    values, lowered = output_rotator(config, outputs, exponent, rotate)
    found = torch.ldexp(values.double(), lowered[..., None])
    conditioning = Conditioning(rotate, None, 0, 0)
    expected = conditioning.restore_outputs(torch.ldexp(outputs.double(), exponent[..., None]))
    assert torch.equal(found, expected)  # both are exact
    assert torch.equal(lowered, exponent) is not rotate


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_rotated_vector_comes_back(config):
    x = random_outputs(config)
    values, exponent = output_rotator(config, hadamard(x), torch.zeros(2, 3, 5).long(), True)
    assert torch.equal(values, x * config.rotation_size)
    assert (exponent == -(config.rotation_size.bit_length() - 1)).all()


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_the_stream_is_wide_enough(head_dim):
    """The widest outputs that a configuration allows, after the largest rotation: below 32 bits."""
    config = SHAPES["D64"].replace(head_dim=head_dim, lanes=head_dim, output_fraction_bits=12)
    largest = torch.full((head_dim,), -1 << (config.output_bits - 1))  # all add up in one element
    values, _ = output_rotator(config, largest, torch.tensor(0), True)
    assert values.abs().max() == (1 << (config.output_bits - 1)) * head_dim < 1 << 31


@every_shape
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("output_rotator", config, simulator)
