"""Scale format: positive integers (2**M + f) * 2**e; with M = 0, powers of two.

A scale has the unit of the integer vectors to be quantized; every stored scale is an integer.
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
    """Return the representable scale nearest to ``numerator * 2**-shift``, ties up.

    The leading one gives the exponent; the M bits behind it, rounded, give the fraction. Numbers
    below the smallest scale 2**M, zero included, give the smallest; numbers above the largest scale
    give the largest.

    Parameters
    ----------
    numerator : int64 [...], 0 <= numerator < 2**53
    shift : fraction bits of the numerator
    round_up : return the smallest representable scale that is not below the number instead

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
    """Return the scale of encoded fields, int64 [...]."""
    return ((1 << config.scale_fraction_bits) + fraction) << exponent


def join_scale(config: EngineConfig, fraction: Tensor, exponent: Tensor) -> Tensor:
    """Return the stored word, ``fraction | exponent << M``, int64 [...]."""
    return fraction | exponent << config.scale_fraction_bits


def split_scale(config: EngineConfig, word: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fraction and exponent fields of stored words, int64 [...]."""
    word = word.long()
    mask = (1 << config.scale_fraction_bits) - 1
    return word & mask, word >> config.scale_fraction_bits
