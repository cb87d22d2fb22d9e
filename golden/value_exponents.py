"""Golden value exponents: the largest exponent of any value scale that was written, a KV head."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["ValueExponents"]


class ValueExponents:
    """The running maximum of docs/contract.md, which goes back when tokens are forgotten.

    It rises a few times in a long context, so every rise is kept with the token that brought it.

    Parameters
    ----------
    batch, kv_heads : axes of everything here

    Attributes
    ----------
    newest : uint8 [batch, kv_heads, n], the maximum when each of the newest n tokens had come
    """

    def __init__(self, batch: int, kv_heads: int) -> None:
        self.newest = np.zeros((batch, kv_heads, 1), np.uint8)
        self._rises = [(0, self.newest)]

    def write(self, exponents: np.ndarray, tokens: int) -> None:
        """Go on over the newest tokens.

        Parameters
        ----------
        exponents : uint8 [batch, kv_heads, n], the largest that each of the newest tokens wrote
        tokens : how many there are with them
        """
        before = self._rises[-1][1]
        running = np.maximum.accumulate(np.concatenate((before, exponents), -1), -1)
        self.newest = running[..., 1:]
        if (running[..., -1:] > before).any():
            rises = (self.newest != running[..., :-1]).any((0, 1))
            first = tokens - exponents.shape[-1] + 1
            for place in rises.nonzero()[0].tolist():
                self._rises.append((first + place, self.newest[..., place, None].copy()))

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        while self._rises[-1][0] > tokens:
            self._rises.pop()
        self.newest = self._rises[-1][1]

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is kept."""
        self._rises = [
            (tokens, function(torch.from_numpy(maximum)).numpy()) for tokens, maximum in self._rises
        ]
        self.newest = function(torch.from_numpy(self.newest)).numpy()
