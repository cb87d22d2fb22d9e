"""Golden multiply-add: dot products of integer keys with integer queries."""

from __future__ import annotations

from torch import Tensor

__all__ = ["multiply_add"]


def multiply_add(integers: Tensor, queries: Tensor) -> Tensor:
    """Sum over d of queries[g, i, d] * integers[t, p, d], exact.

    Parameters
    ----------
    integers : int8 [..., T, P, D], one vector a token: P is 1
    queries : int64 [..., G, I, D], I queries for each of G heads of the group

    Returns
    -------
    int64 [..., G, I, T, P]
    """
    return (queries[..., None, None, :] * integers.long()[..., None, None, :, :, :]).sum(-1)
