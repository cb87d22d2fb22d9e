"""Golden select-accumulate: weighted sums of ternary value digits, rescaled block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.fixed_point import exact_matmul

__all__ = ["accumulate", "block_sums", "select_accumulate"]


def select_accumulate(trits: Tensor, plane_weights: Tensor, shifts: Tensor) -> Tensor:
    """``acc = (acc >> shift_n) + sum over tokens and planes of block n of weight * trit``.

    Parameters
    ----------
    trits : int8 [..., N, B, P, D], N blocks of B tokens
    plane_weights : int64 [..., G, I, N, B, P]
    shifts : int64 [..., G, I, N]

    Returns
    -------
    int64 [..., G, I, D]
    """
    return accumulate(block_sums(trits, plane_weights), shifts)


def block_sums(trits: Tensor, plane_weights: Tensor) -> Tensor:
    """What each block adds to the accumulators: int64 [..., N, G, I, D]."""
    planes = trits.flatten(-3, -2)  # [..., N, B*P, D]
    weights = plane_weights.flatten(-2, -1)  # [..., G, I, N, B*P]
    by_block = weights.movedim(-2, -4).flatten(-3, -2)  # [..., N, G*I, B*P]
    return exact_matmul(by_block, planes).unflatten(-2, weights.shape[-4:-2])


def accumulate(added: Tensor, shifts: Tensor) -> Tensor:
    """Accumulators [..., G, I, D] from the blocks' sums [..., N, G, I, D] and the rescales."""
    accumulators = torch.zeros_like(added[..., 0, :, :, :])
    for block in range(shifts.shape[-1]):
        shift = shifts[..., block, None]
        accumulators = (accumulators >> shift) + added[..., block, :, :, :]
    return accumulators
