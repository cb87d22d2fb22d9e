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
    first, count : number of the first block, and how many blocks follow from there
    index : int64 [..., count, width], the token in each place; 0 in empty places
    filled : bool [..., count, width], false in empty places
    """

    first: int
    count: int
    index: Tensor
    filled: Tensor

    @classmethod
    def of(cls, places: Tensor, size: int) -> Blocks:
        """Arrange tokens by their places.

        Parameters
        ----------
        places : int64 [..., T], each token's place in the engine's order; several tokens may have
            the same place if no query sees more than one of them
        size : places per block
        """
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
        shape = (count, width)
        return cls(first, count, index.unflatten(-1, shape), filled.unflatten(-1, shape))

    @property
    def span(self) -> slice:
        """The blocks' numbers."""
        return slice(self.first, self.first + self.count)

    def arrange(self, x: Tensor, axis: int, between: int = 0) -> Tensor:
        """Split the token axis of `x` into blocks and places: [..., count, width, ...].

        Empty places get some token's elements.

        Parameters
        ----------
        axis : the token axis of `x`, negative
        between : axes of `x` between the leading axes of `index` and the token axis
        """
        flat = self.index.flatten(-2)
        if flat.ndim == 1:
            arranged = x.index_select(axis, flat)
        else:
            behind = -axis - 1
            index = flat.reshape(*flat.shape[:-1], *[1] * between, flat.shape[-1], *[1] * behind)
            shape = list(x.shape)
            shape[axis] = flat.shape[-1]
            arranged = x.gather(axis, index.expand(shape))
        return arranged.unflatten(axis, self.index.shape[-2:])

    def visible(self, seen: Tensor) -> Tensor:
        """Arrange a mask [..., I, T]: bool [..., I, count, width], false in empty places."""
        return self.arrange(seen, -1, between=1) & self.filled[..., None, :, :]
