"""Scale format: positive numbers as (1 + f / 2**M) * 2**(e - bias), M = 0 being powers of two."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtq_hw.config import EngineConfig

__all__ = ["decode_scale", "encode_scale", "join_scale", "split_scale"]


def encode_scale(
    config: EngineConfig, scale: Tensor, *, round_up: bool = False
) -> tuple[Tensor, Tensor]:
    """Nearest representable scale, ties up; clamped to the smallest and the largest.

    Parameters
    ----------
    scale : float [...], >= 0. Zero becomes the smallest scale.
    round_up : take the next representable scale that is not smaller instead of the nearest

    Returns
    -------
    fraction, exponent : int64 [...], the fields f and e
    """
    one = 1 << config.scale_fraction_bits
    half_to_one, power = torch.frexp(scale.double())
    exact = half_to_one * (2 * one)
    mantissa = (exact.ceil() if round_up else (exact + 0.5).floor()).long()  # 2*one carries
    carry = mantissa == 2 * one
    mantissa = torch.where(carry, one, mantissa)
    exponent = power.long() - 1 + carry.long() + config.scale_bias
    largest = (1 << config.scale_exponent_bits) - 1
    fraction = torch.where(exponent > largest, one - 1, mantissa - one)
    fraction = torch.where((exponent < 0) | (scale == 0), 0, fraction)
    exponent = torch.where(scale == 0, 0, exponent.clamp(0, largest))
    return fraction, exponent


def decode_scale(config: EngineConfig, fraction: Tensor, exponent: Tensor) -> Tensor:
    """The scale of encoded fields, float64 [...], exact."""
    mantissa = (1 << config.scale_fraction_bits) + fraction
    return torch.ldexp(mantissa.double(), exponent - config.scale_bias - config.scale_fraction_bits)


def join_scale(config: EngineConfig, fraction: Tensor, exponent: Tensor) -> Tensor:
    """The stored word, ``fraction | exponent << M``, int64 [...]."""
    return fraction | exponent << config.scale_fraction_bits


def split_scale(config: EngineConfig, word: Tensor) -> tuple[Tensor, Tensor]:
    """Fraction and exponent fields of stored words, int64 [...]."""
    word = word.long()
    mask = (1 << config.scale_fraction_bits) - 1
    return word & mask, word >> config.scale_fraction_bits
