"""Integer rounding and saturation, as docs/contract.md defines them. All tensors are int64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rshift_round", "saturate"]


def rshift_round(x: Tensor, n: Tensor | int) -> Tensor:
    """(x + 2**(n-1)) >> n: divide by 2**n, round half up; x itself for n = 0. Needs 0 <= n < 63."""
    shift = torch.as_tensor(n, dtype=torch.int64)
    half = (torch.ones_like(shift) << shift) >> 1
    return (x + half) >> shift


def saturate(x: Tensor, bits: int) -> Tensor:
    """Clamp to the range of a two's complement number of `bits` bits."""
    limit = 1 << (bits - 1)
    return x.clamp(-limit, limit - 1)
