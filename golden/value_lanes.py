"""Golden value lanes: sums of value digits times weights, rescaled block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.fixed_point import exact_matmul

__all__ = ["accumulate", "block_sums", "value_lanes"]


def value_lanes(digits: Tensor, plane_weights: Tensor, shifts: Tensor) -> Tensor:
    """Accumulate ``acc = (acc >> shift_n) + sum over block n of weight * digit`` over all blocks.

    Parameters
    ----------
    digits : int8 [..., N, B, P, D], trits or integers, N blocks of B tokens
    plane_weights : int64 [..., G, I, N, B, P]
    shifts : int64 [..., G, I, N]

    Returns
    -------
    int64 [..., G, I, D]
    """
    return accumulate(block_sums(digits, plane_weights), shifts)


def block_sums(digits: Tensor, plane_weights: Tensor) -> Tensor:
    """Sum weight * digit over each block: int64 [..., N, G, I, D]."""
    planes = digits.flatten(-3, -2)  # [..., N, B*P, D]
    weights = plane_weights.flatten(-2, -1)  # [..., G, I, N, B*P]
    by_block = weights.movedim(-2, -4).flatten(-3, -2)  # [..., N, G*I, B*P]
    return exact_matmul(by_block, planes).unflatten(-2, weights.shape[-4:-2])


def accumulate(added: Tensor, shifts: Tensor) -> Tensor:
    """Accumulate block sums [..., N, G, I, D] to [..., G, I, D], rescaling before each block."""
    accumulators = torch.zeros_like(added[..., 0, :, :, :])
    for block in range(shifts.shape[-1]):
        shift = shifts[..., block, None]
        accumulators = (accumulators >> shift) + added[..., block, :, :, :]
    return accumulators
