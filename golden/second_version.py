"""Second versions: tokens that some queries of a forward pass see in another form than the rest.

A format with a window of recent tokens stores a token first in one version and later in another. In
a pass of several queries, an early query must see the version at its own time, and a later query
the version after the token left the window. Each query attends to the version that it sees: scores
of second versions replace scores of first versions, and after the softmax the weights of second
versions are separated from the weights of first versions::

    second.replace(scores, scores_of(second.vectors))
    weights = softmax(scores)
    apart = second.take(weights)
    outputs = weights @ vectors + apart @ second.vectors
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["SecondVersion"]

Vectors = TypeVar("Vectors")
Others = TypeVar("Others")


@dataclass(frozen=True)
class SecondVersion(Generic[Vectors]):
    """The second version of the keys, or of the values, of M neighbouring tokens out of T.

    vectors : the second version, a tensor [..., M, D] or planes [..., M, P, D]
    start : index of the first of the M tokens
    seen : bool [..., I, M], true where the query sees the second version of a token
    """

    vectors: Vectors
    start: int
    seen: Tensor

    @property
    def span(self) -> slice:
        """The tokens that have two versions."""
        return slice(self.start, self.start + self.seen.shape[-1])

    def map(self, function: Callable[[Vectors], Others]) -> SecondVersion[Others]:
        """Return a second version of the same tokens with ``function(vectors)`` as vectors."""
        return SecondVersion(function(self.vectors), self.start, self.seen)

    def of_queries(self, queries: slice) -> SecondVersion[Vectors]:
        """Return the second version for some of the queries."""
        return SecondVersion(self.vectors, self.start, self.seen[..., queries, :])

    def replace(self, first: Tensor, second: Tensor) -> None:
        """Overwrite elements of first versions where a query sees the second version.

        Parameters
        ----------
        first : [..., G, I, T], for example scores of all tokens; changed in place
        second : [..., G, I, M], the corresponding elements of second versions
        """
        here = first[..., self.span]
        first[..., self.span] = torch.where(self.seen[..., None, :, :], second, here)

    def take(self, weights: Tensor) -> Tensor:
        """Move weights [..., G, I, T] of second versions to a new tensor [..., G, I, M].

        The moved elements of `weights` are set to zero in place.
        """
        apart = torch.where(self.seen[..., None, :, :], weights[..., self.span], 0)
        weights[..., self.span] -= apart
        return apart
