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

import torch
from torch import Tensor

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
    """Transform [..., D] in the type it comes in, integer or float."""
    if x.dtype == torch.int64:  # exact in float64 as long as sums stay below 2**53: one product
        return (x.double() @ _matrix(x.shape[-1]).to(x.device)).long()
    return _walsh(x * hadamard_signs(x.shape[-1]).to(x))


def transposed_hadamard(y: Tensor) -> Tensor:
    """``s * (H y)``, int64 [..., D]: n times what `inverse_hadamard` gives, and so exact."""
    return (y.double() @ _matrix(y.shape[-1]).T.to(y.device)).long()


def inverse_hadamard(y: Tensor) -> Tensor:
    """Undo `hadamard`, float [..., D]."""
    dim = y.shape[-1]
    return _walsh(y) * hadamard_signs(dim).to(y) / (dim & -dim)


@cache
def _matrix(head_dim: int) -> Tensor:
    """The transform as a matrix, float64 [D, D], to be multiplied from the right."""
    return _walsh(torch.diag(hadamard_signs(head_dim)))


def _walsh(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of every block.

    log2(n) equal passes: a butterfly over the lowest bit of the index, which then becomes the
    highest. Sums are made in a fixed order, so a vector's result does not depend on its companions,
    as that of a matrix product may.
    """
    dim = x.shape[-1]
    size = dim & -dim
    x = x.unflatten(-1, (-1, size))
    for _ in range(size.bit_length() - 1):
        even, odd = x[..., 0::2], x[..., 1::2]
        x = torch.cat((even + odd, even - odd), -1)
    return x.flatten(-2)
