"""The scale format: exact round trips, nearest rounding, saturation at both ends."""

from __future__ import annotations

import pytest
import torch

from golden.scale import decode_scale, encode_scale, join_scale, split_scale
from kvtq_hw.config import EngineConfig, load_config


def config_with(fraction_bits: int, exponent_bits: int) -> EngineConfig:
    update = {"scale_fraction_bits": fraction_bits, "scale_exponent_bits": exponent_bits}
    return load_config("smollm2").model_copy(update=update)


FORMATS = [(m, e) for m in (0, 1, 3, 8) for e in (4, 5, 6)]


def all_scales(config: EngineConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every word of the format, in ascending order of scale, with its fields."""
    fraction, exponent = split_scale(config, torch.arange(1 << config.scale_bits))
    return decode_scale(config, fraction, exponent), fraction, exponent


@pytest.mark.parametrize(("fraction_bits", "exponent_bits"), FORMATS)
def test_every_scale_is_its_own_encoding(fraction_bits, exponent_bits):
    config = config_with(fraction_bits, exponent_bits)
    scales, fraction, exponent = all_scales(config)
    assert (scales.diff() > 0).all()
    encoded = encode_scale(config, scales)
    assert torch.equal(encoded[0], fraction)
    assert torch.equal(encoded[1], exponent)
    assert torch.equal(join_scale(config, *encoded), torch.arange(1 << config.scale_bits))


@pytest.mark.parametrize(("fraction_bits", "exponent_bits"), FORMATS)
def test_encoding_is_the_nearest_scale(fraction_bits, exponent_bits):
    config = config_with(fraction_bits, exponent_bits)
    scales, _, _ = all_scales(config)
    generator = torch.Generator().manual_seed(fraction_bits)
    low, high = scales[0].log2(), scales[-1].log2()
    x = 2 ** (low + (high - low) * torch.rand(2000, generator=generator, dtype=torch.float64))
    found = decode_scale(config, *encode_scale(config, x))
    nearest = (x[:, None] - scales).abs().amin(-1)
    assert torch.equal((x - found).abs(), nearest)


@pytest.mark.parametrize(("fraction_bits", "exponent_bits"), FORMATS)
def test_rounding_up_is_the_next_scale_that_is_not_smaller(fraction_bits, exponent_bits):
    config = config_with(fraction_bits, exponent_bits)
    scales, _, _ = all_scales(config)
    assert torch.equal(decode_scale(config, *encode_scale(config, scales, round_up=True)), scales)
    between = (scales[:-1] + scales[1:]) / 2
    for x in (between, scales[:-1] * (1 + 1e-12)):
        found = decode_scale(config, *encode_scale(config, x, round_up=True))
        assert torch.equal(found, scales[1:])


def test_ties_go_up_and_rounding_carries_into_the_exponent():
    config = config_with(3, 5)
    tie = torch.tensor([1 + 1 / 16, 2 - 1 / 16], dtype=torch.float64)
    assert decode_scale(config, *encode_scale(config, tie)).tolist() == [1 + 1 / 8, 2.0]
    power_of_two = config_with(0, 5)
    assert decode_scale(power_of_two, *encode_scale(power_of_two, tie)).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("fraction_bits", "exponent_bits"), FORMATS)
def test_zero_tiny_and_huge_scales(fraction_bits, exponent_bits):
    config = config_with(fraction_bits, exponent_bits)
    scales, _, _ = all_scales(config)
    x = torch.tensor([0.0, 1e-300, 1e300], dtype=torch.float64)
    expected = [scales[0].item(), scales[0].item(), scales[-1].item()]
    assert decode_scale(config, *encode_scale(config, x)).tolist() == expected
