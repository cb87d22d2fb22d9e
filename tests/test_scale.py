"""The scale format: exact round trips, nearest rounding, saturation at both ends."""

from __future__ import annotations

import pytest
import torch

from golden.scale import decode_scale, encode_scale, join_scale, split_scale
from kvtq_hw.contract.config import EngineConfig, load_config


def config_with(fraction_bits: int, exponent_bits: int) -> EngineConfig:
    update = {"scale_fraction_bits": fraction_bits, "scale_exponent_bits": exponent_bits}
    return load_config("smollm2").replace(**update)


FORMATS = [(m, e) for m in (0, 1, 3, 8) for e in (4, 5)]


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


def expected_word(config: EngineConfig, numerator: int, shift: int, *, round_up: bool) -> int:
    """The word by searching all scales, exactly: the nearest, the larger one of two as near."""
    words = range(1 << config.scale_bits)
    scales = all_scales(config)[0].tolist()
    if round_up:
        return next((word for word in words if scales[word] << shift >= numerator), words[-1])
    return min(words, key=lambda word: (abs((scales[word] << shift) - numerator), -word))


@pytest.mark.parametrize(("fraction_bits", "exponent_bits"), FORMATS)
@pytest.mark.parametrize("round_up", [False, True])
@pytest.mark.parametrize("shift", [0, 5])
def test_encoding_is_the_nearest_scale(fraction_bits, exponent_bits, round_up, shift):
    config = config_with(fraction_bits, exponent_bits)
    scales = all_scales(config)[0]
    near = torch.cat([(scales[:-1] + scales[1:] << shift) // 2, scales << shift])  # ties, exact
    ladder = 2 ** torch.linspace(0, 46, 100, dtype=torch.float64)
    numerators = torch.cat([near, near + 1, near - 1, ladder.long(), torch.tensor([0, 1])])
    numerators = numerators[(numerators >= 0) & (numerators < 1 << 53)][
        :: 7 if fraction_bits == 8 else 1
    ]
    found = join_scale(config, *encode_scale(config, numerators, shift, round_up=round_up))
    expected = [
        expected_word(config, number, shift, round_up=round_up) for number in numerators.tolist()
    ]
    assert found.tolist() == expected


def test_ties_go_up_and_rounding_carries_into_the_exponent():
    config = config_with(3, 5)
    tie = torch.tensor([17, 31])  # mantissas of four bits: 16 or 18, 30 or 32
    assert decode_scale(config, *encode_scale(config, tie)).tolist() == [18, 32]
    power_of_two = config_with(0, 5)
    assert decode_scale(power_of_two, *encode_scale(power_of_two, tie)).tolist() == [16, 32]
    assert decode_scale(power_of_two, *encode_scale(power_of_two, tie + 8)).tolist() == [32, 32]
