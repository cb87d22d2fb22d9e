"""Golden key lanes: dot products of key digits and integer queries."""

from __future__ import annotations

from torch import Tensor

from golden.fixed_point import exact_matmul

__all__ = ["key_lanes"]


def key_lanes(digits: Tensor, queries: Tensor) -> Tensor:
    """Sum queries[g, i, d] * digits[t, p, d] over d, exactly.

    Parameters
    ----------
    digits : int8 [..., T, P, D], trits or integers
    queries : int64 [..., G, I, D], I queries for each of G heads of the group

    Returns
    -------
    int64 [..., G, I, T, P]
    """
    tokens, planes, dim = digits.shape[-3:]
    matrix = digits.reshape(*digits.shape[:-3], 1, tokens * planes, dim)
    return exact_matmul(queries, matrix.mT).unflatten(-1, (tokens, planes))
