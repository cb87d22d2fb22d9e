"""Integer rounding and saturation, as docs/contract.md defines them. All tensors are int64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exact_matmul", "rshift_round", "saturate"]


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply integer matrices exactly: int64.

    Float products are many times faster, and exact where no partial sum needs more bits than the
    mantissa has. A partial sum is at most (inner dimension) x (largest of a) x (largest of b).
    """
    if not a.numel() or not b.numel():
        return a.long() @ b.long()
    bound = a.shape[-1] * _largest(a) * _largest(b)
    if bound < 1 << 24:
        return (a.float() @ b.float()).long()
    if bound < 1 << 53:
        return (a.double() @ b.double()).long()
    return a.long() @ b.long()


def _largest(x: Tensor) -> int:
    """Return the largest magnitude, correct for int8's -128 too, which `abs` leaves negative."""
    low, high = x.aminmax()
    return max(-int(low), int(high))


def rshift_round(x: Tensor, n: Tensor | int) -> Tensor:
    """Divide by 2**n, rounding half up: (x + 2**(n-1)) >> n; x itself for n = 0.

    Needs 0 <= n < 63.
    """
    shift = torch.as_tensor(n, dtype=torch.int64)
    half = (torch.ones_like(shift) << shift) >> 1
    return (x + half) >> shift


def saturate(x: Tensor, bits: int) -> Tensor:
    """Clamp to the range of two's complement numbers of `bits` bits."""
    limit = 1 << (bits - 1)
    return x.clamp(-limit, limit - 1)
