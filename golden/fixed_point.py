"""Integer rounding and saturation, as docs/contract.md defines them. All tensors are int64."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["exact_matmul", "power_of_two", "rshift_round", "saturate"]


def exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Multiply integer matrices exactly: int64.

    Float products are many times faster, and exact where no partial sum needs more bits than the
    mantissa has. A partial sum is at most (inner dimension) x (largest of a) x (largest of b).
    Where it has too few bits, a matrix is split into high and low bits, because a GPU has no
    products of integer matrices. Results wrap around beyond 64 bits.
    """
    if not a.numel() or not b.numel():
        return (a.float() @ b.float()).long()
    largest_a, largest_b = _largest(a), _largest(b)
    bound = a.shape[-1] * largest_a * largest_b
    # other precisions round the factors to fewer bits than float32 has
    if bound < 1 << 24 and torch.get_float32_matmul_precision() == "highest":
        return (a.float() @ b.float()).long()
    if bound < 1 << 53:
        return (a.double() @ b.double()).long()
    if largest_a < largest_b:
        return exact_matmul(b.mT, a.mT).mT
    a, bits = a.long(), largest_a.bit_length() // 2
    return (exact_matmul(a >> bits, b) << bits) + exact_matmul(a & ((1 << bits) - 1), b)


def _largest(x: Tensor) -> int:
    """Return the largest magnitude, correct for int8's -128 too, which `abs` leaves negative."""
    low, high = x.aminmax()
    return max(-int(low), int(high))


def power_of_two(n: Tensor) -> Tensor:
    """Return 2**n, float64 [...], for n int64 [...]; n is clamped to -1022..1023.

    The bits of the number are put together, and so it is exact on every device. `torch.ldexp`
    calls `pow`, which need not be exact on a GPU.
    """
    return ((n.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def rshift_round(x: Tensor, n: Tensor | int) -> Tensor:
    """Divide by 2**n, rounding half up: (x + 2**(n-1)) >> n; x itself for n = 0.

    Needs 0 <= n < 63.
    """
    shift = n.long() if isinstance(n, Tensor) else torch.tensor(n, device=x.device)
    half = (torch.ones_like(shift) << shift) >> 1
    return (x + half) >> shift


def saturate(x: Tensor, bits: int) -> Tensor:
    """Clamp to the range of two's complement numbers of `bits` bits."""
    limit = 1 << (bits - 1)
    return x.clamp(-limit, limit - 1)
