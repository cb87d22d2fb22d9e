"""Arrangement of tokens in blocks: where the engine's order of tokens is not that of their arrival.

The online softmax works block by block, and inside a block the order of tokens changes no bit. So a
token's place in the engine's order matters only by its block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks:
    """Arranges T tokens in consecutive blocks, padded to a common width.

    Attributes
    ----------
    first, count, width : number of the first block, how many blocks follow from there, and places
        per block
    before : empty places before the first token
    index : int64 [..., count * width], the token in each place, 0 in empty places; None where each
        token follows the token before it
    filled : bool [..., count * width], false in empty places; None where `index` is
    """

    first: int
    count: int
    width: int
    before: int = 0
    index: Tensor | None = None
    filled: Tensor | None = None

    @classmethod
    def of(cls, places: Tensor, size: int) -> Blocks:
        """Arrange tokens by their places.

        Parameters
        ----------
        places : int64 [..., T], each token's place in the engine's order; several tokens may have
            the same place if no query sees more than one of them
        size : places per block
        """
        if places.ndim == 1 and bool((places.diff() == 1).all()):
            first, before = divmod(int(places[0]), size)
            return cls(first, -(-(before + len(places)) // size), size, before)
        block = places // size
        first = int(block.min())
        block = block - first
        count = int(block.max()) + 1
        ordered, order = block.sort(dim=-1, stable=True)
        numbers = torch.arange(count, device=block.device).expand(*block.shape[:-1], count)
        starts = torch.searchsorted(ordered.contiguous(), numbers.contiguous())
        tokens = torch.arange(block.shape[-1], device=block.device)
        within = tokens - starts.gather(-1, ordered)
        width = int(within.max()) + 1
        target = ordered * width + within
        index = torch.zeros(*block.shape[:-1], count * width, dtype=torch.long, device=block.device)
        filled = torch.zeros_like(index, dtype=torch.bool)
        index.scatter_(-1, target, order)
        filled.scatter_(-1, target, True)
        return cls(first, count, width, 0, index, filled)

    @property
    def span(self) -> slice:
        """The blocks' numbers."""
        return slice(self.first, self.first + self.count)

    def arrange(self, x: Tensor, axis: int, between: int = 0) -> Tensor:
        """Split the token axis of `x` into blocks and places: [..., count, width, ...].

        Empty places get zeros, or some token's elements.

        Parameters
        ----------
        axis : the token axis of `x`, negative
        between : axes of `x` between the leading axes of `index` and the token axis
        """
        behind = -axis - 1
        if self.index is None:
            after = self.count * self.width - self.before - x.shape[axis]
            arranged = torch.nn.functional.pad(x, (0, 0) * behind + (self.before, after))
        elif self.index.ndim == 1:
            arranged = x.index_select(axis, self.index)
        else:
            leading, size = self.index.shape[:-1], self.index.shape[-1]
            index = self.index.reshape(*leading, *[1] * between, size, *[1] * behind)
            shape = list(x.shape)
            shape[axis] = size
            arranged = x.gather(axis, index.expand(shape))
        return arranged.unflatten(axis, (self.count, self.width))

    def visible(self, seen: Tensor) -> Tensor:
        """Arrange a mask [..., I, T]: bool [..., I, count, width], false in empty places."""
        arranged = self.arrange(seen, -1, between=1)
        if self.filled is None:
            return arranged
        return arranged & self.filled.unflatten(-1, (self.count, self.width))[..., None, :, :]
