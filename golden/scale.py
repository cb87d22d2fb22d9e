"""Scale format: positive integers as (2**M + f) * 2**e, M = 0 being powers of two.

The unit is that of the integer vectors that are quantized; no stored scale has a fraction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.fixed_point import rshift_round
from kvtq_hw.contract.config import EngineConfig

__all__ = ["decode_scale", "encode_scale", "join_scale", "split_scale"]


def encode_scale(
    config: EngineConfig, numerator: Tensor, shift: int = 0, *, round_up: bool = False
) -> tuple[Tensor, Tensor]:
    """Nearest representable scale to ``numerator * 2**-shift``, ties up.

    The leading one gives the exponent, the M bits behind it the fraction, rounded. Below the
    smallest scale (zero included) it is the smallest, 2**M; above the largest it is the largest.

    Parameters
    ----------
    numerator : int64 [...], 0 <= numerator < 2**53
    shift : fraction bits of the numerator
    round_up : take the next representable scale that is not smaller instead of the nearest

    Returns
    -------
    fraction, exponent : int64 [...], the fields f and e
    """
    bits = config.scale_fraction_bits
    one = 1 << bits
    leading = torch.frexp(numerator.double()).exponent.long() - 1  # exact below 2**53
    dropped = leading - bits
    if round_up:
        mantissa = -(-numerator >> dropped.clamp(min=0))
    else:
        mantissa = rshift_round(numerator, dropped.clamp(min=0))
    mantissa = mantissa << (-dropped).clamp(0, bits)
    carry = mantissa == 2 * one
    exponent = dropped - shift + carry.long()
    largest = (1 << config.scale_exponent_bits) - 1
    fraction = torch.where(carry, 0, mantissa - one)
    fraction = torch.where(exponent > largest, one - 1, fraction)
    below = (exponent < 0) | (numerator == 0)
    return torch.where(below, 0, fraction), torch.where(below, 0, exponent.clamp(max=largest))


def decode_scale(config: EngineConfig, fraction: Tensor, exponent: Tensor) -> Tensor:
    """The scale of encoded fields, int64 [...]."""
    return ((1 << config.scale_fraction_bits) + fraction) << exponent


def join_scale(config: EngineConfig, fraction: Tensor, exponent: Tensor) -> Tensor:
    """The stored word, ``fraction | exponent << M``, int64 [...]."""
    return fraction | exponent << config.scale_fraction_bits


def split_scale(config: EngineConfig, word: Tensor) -> tuple[Tensor, Tensor]:
    """Fraction and exponent fields of stored words, int64 [...]."""
    word = word.long()
    mask = (1 << config.scale_fraction_bits) - 1
    return word & mask, word >> config.scale_fraction_bits
