"""Second versions: tokens that some queries of a forward pass see in another form than the rest.

A format with a window of recent tokens holds a token first in one version and later in another. In
a pass of several queries an early query must see a token as it was then, and a later query as it
has become. Both versions are attended to, each by the queries that see it: scores of second
versions take the place of first ones, and after the softmax the weights of second versions are
taken apart from the weights of first ones::

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

    vectors : that version, a tensor [..., M, D] or planes [..., M, P, D]
    start : index of the first of these tokens
    seen : bool [..., I, M], the query sees the second version of a token instead of the first
    """

    vectors: Vectors
    start: int
    seen: Tensor

    @property
    def span(self) -> slice:
        """The tokens that have two versions."""
        return slice(self.start, self.start + self.seen.shape[-1])

    def map(self, function: Callable[[Vectors], Others]) -> SecondVersion[Others]:
        """Return the version with other vectors, a function of these."""
        return SecondVersion(function(self.vectors), self.start, self.seen)

    def of_queries(self, queries: slice) -> SecondVersion[Vectors]:
        """Return the version as some of the queries see it."""
        return SecondVersion(self.vectors, self.start, self.seen[..., queries, :])

    def replace(self, first: Tensor, second: Tensor) -> None:
        """Overwrite what belongs to first versions where a query sees the second one.

        Parameters
        ----------
        first : [..., G, I, T], for example scores of all tokens; changed in place
        second : [..., G, I, M], the same of second versions
        """
        here = first[..., self.span]
        first[..., self.span] = torch.where(self.seen[..., None, :, :], second, here)

    def take(self, weights: Tensor) -> Tensor:
        """Move weights [..., G, I, T] to second versions: [..., G, I, M].

        A weight of T that moves is zero afterwards, in place.
        """
        apart = torch.where(self.seen[..., None, :, :], weights[..., self.span], 0)
        weights[..., self.span] -= apart
        return apart
