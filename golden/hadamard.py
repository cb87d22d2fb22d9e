"""Golden Hadamard: the signed Walsh-Hadamard transform of a head vector, exact in integers.

``y = H (s * x)``, n the largest power of two that divides D, H the Walsh-Hadamard matrix of size n
(elements +1 and -1) in natural order, applied to D / n consecutive blocks, and s a fixed vector of
signs. Nothing is divided, so integers stay integers and grow by log2 n bits; ``inverse_hadamard``
divides by n. Dot products between transformed vectors are n times those of the vectors themselves.
After it, a vector's elements look Gaussian, outlier channels are gone, and one scale serves all
elements.
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
    """The fixed signs s, +1 or -1: float64 [D], from a maximal 9-bit LFSR (x**9 + x**5 + 1).

    Without them a constant vector would end up in one element.
    """
    state, signs = 1, []
    for _ in range(head_dim):
        signs.append(1.0 - 2.0 * (state & 1))
        state = state >> 1 | ((state ^ state >> 4) & 1) << 8
    return torch.tensor(signs, dtype=torch.float64)


def hadamard(x: Tensor) -> Tensor:
    """Transform [..., D] in the type it comes in, integer or float; floats in double precision."""
    dim = x.shape[-1]
    return _transformed(x, _factors(dim), _ones(dim))


def transposed_hadamard(y: Tensor) -> Tensor:
    """``s * (H y)``, int64 [..., D]: n times what `inverse_hadamard` gives, and so exact."""
    dim = y.shape[-1]
    return _transformed(y, _ones(dim), _factors(dim))


def inverse_hadamard(y: Tensor) -> Tensor:
    """Undo `hadamard`, float [..., D]."""
    dim = y.shape[-1]
    return _transformed(y, _ones(dim), _factors(dim, dim & -dim))


def _transformed(x: Tensor, before: np.ndarray, after: np.ndarray) -> Tensor:
    source = x if x.dtype in (torch.int64, torch.float64) else x.double()
    # tensors cost more to make than a token to rotate
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
    """In place: factors, the Walsh-Hadamard transform of every block of n elements, factors.

    n is the largest power of two that divides the dimension.

    log2(n) passes of butterflies, each over one bit of the index, from the lowest up. Sums are made
    in a fixed order, so a vector's result does not depend on its companions, as that of a matrix
    product may. As tensor operations, starting them costs more than a token's additions.
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
