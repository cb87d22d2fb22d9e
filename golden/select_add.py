"""Golden select-add: plane sums of ternary digits against integer queries."""

from __future__ import annotations

from torch import Tensor

from golden.fixed_point import exact_matmul

__all__ = ["select_add"]


def select_add(trits: Tensor, queries: Tensor) -> Tensor:
    """Sum over d of queries[g, i, d] * trits[t, p, d], exact.

    Parameters
    ----------
    trits : int8 [..., T, P, D]
    queries : int64 [..., G, I, D], I queries for each of G heads of the group

    Returns
    -------
    int64 [..., G, I, T, P]
    """
    tokens, planes, dim = trits.shape[-3:]
    matrix = trits.reshape(*trits.shape[:-3], 1, tokens * planes, dim)
    return exact_matmul(queries, matrix.mT).unflatten(-1, (tokens, planes))
