"""Golden Hadamard: the signed Walsh-Hadamard transform of a head vector, exact in integers.

The transform is ``y = H (s * x)``. Here n is the largest power of two that divides D, H is the
Walsh-Hadamard matrix of size n (elements +1 and -1) in natural order, applied to D / n consecutive
blocks, and s is a fixed vector of signs. Nothing is divided, so integers stay integers and grow by
log2 n bits; `inverse_hadamard` divides by n. Dot products of transformed vectors are n times those
of the original vectors. The elements of a transformed vector look Gaussian and outlier channels are
gone, so one scale serves all elements.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from golden.compiled import Array, compiled

__all__ = ["hadamard", "hadamard_signs", "inverse_hadamard", "transposed_hadamard"]


@cache
def hadamard_signs(head_dim: int) -> Tensor:
    """Return the fixed signs s, +1 or -1: float64 [D], from a maximal 9-bit LFSR (x**9 + x**5 + 1).

    Without signs, the transform of a constant vector would have a single nonzero element per block.
    """
    state, signs = 1, []
    for _ in range(head_dim):
        signs.append(1.0 - 2.0 * (state & 1))
        state = state >> 1 | ((state ^ state >> 4) & 1) << 8
    return torch.tensor(signs, dtype=torch.float64)


def hadamard(x: Tensor) -> Tensor:
    """Transform [..., D], integers exactly and floats in double precision; keep the dtype."""
    dim = x.shape[-1]
    return _transformed(x, _factors(dim), _ones(dim))


def transposed_hadamard(y: Tensor) -> Tensor:
    """Return ``s * (H y)``, int64 [..., D]: n times `inverse_hadamard`, and therefore exact."""
    dim = y.shape[-1]
    return _transformed(y, _ones(dim), _factors(dim))


def inverse_hadamard(y: Tensor) -> Tensor:
    """Undo `hadamard`, float [..., D]."""
    dim = y.shape[-1]
    return _transformed(y, _ones(dim), _factors(dim, dim & -dim))


def _transformed(x: Tensor, before: np.ndarray, after: np.ndarray) -> Tensor:
    source = x if x.dtype in (torch.int64, torch.float64) else x.double()
    # creating a tensor costs more than rotating a token
    result = np.array(source.numpy(force=True), order="C")
    _transform(result.reshape(-1, len(before)), before, after)
    return torch.from_numpy(result).to(x)


@cache
def _factors(dim: int, divisor: int = 1) -> np.ndarray:
    return hadamard_signs(dim).numpy() / divisor


@cache
def _ones(dim: int) -> np.ndarray:
    return np.ones(dim)


@compiled(
    vectors=Array((np.int64, np.float64), "count", "dim", written=True),
    before=Array(np.float64, "dim"),
    after=Array(np.float64, "dim"),
)
def _transform(vectors, before, after):
    """Multiply by `before`, transform each block of n elements, multiply by `after`, all in place.

    Here n is the largest power of two that divides the dimension.

    A block takes log2(n) passes of butterflies, one pass per bit of the index, from the lowest up.
    The order of additions is fixed, so the result of a vector does not depend on the other vectors,
    unlike in a matrix product. With tensor operations, start-up would cost more than the additions
    of a token.
    """
    dim = vectors.shape[1]
    size = dim & -dim
    for x in vectors:
        for i in range(dim):
            x[i] *= before[i]
        distance = 1
        while distance < size:
            for start in range(0, dim, 2 * distance):
                for i in range(start, start + distance):
                    low, high = x[i], x[i + distance]
                    x[i], x[i + distance] = low + high, low - high
            distance *= 2
        for i in range(dim):
            x[i] *= after[i]
