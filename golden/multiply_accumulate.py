"""Golden multiply-accumulate: weighted sums of integer values, rescaled block by block."""

from __future__ import annotations

from torch import Tensor

from golden.select_accumulate import accumulate

__all__ = ["multiply_accumulate", "weighted_sums"]


def multiply_accumulate(integers: Tensor, weights: Tensor, shifts: Tensor) -> Tensor:
    """``acc = (acc >> shift_n) + sum over tokens of block n of weight * integer``.

    Parameters
    ----------
    integers : int8 [..., N, B, P, D], N blocks of B tokens; P is 1
    weights : int64 [..., G, I, N, B, P]
    shifts : int64 [..., G, I, N]

    Returns
    -------
    int64 [..., G, I, D]
    """
    return accumulate(weighted_sums(integers, weights), shifts)


def weighted_sums(integers: Tensor, weights: Tensor) -> Tensor:
    """What each block adds to the accumulators: int64 [..., N, G, I, D]."""
    by_block = weights.movedim(-3, -5)  # [..., N, G, I, B, P]
    vectors = integers.long()[..., None, None, :, :, :]  # [..., N, 1, 1, B, P, D]
    return (by_block[..., None] * vectors).sum((-3, -2))
