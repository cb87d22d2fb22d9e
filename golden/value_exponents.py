"""Golden value exponents: the largest exponent of any value scale that was written, a KV head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ValueExponents"]


class ValueExponents:
    """The running maximum of docs/contract.md, which goes back when tokens are forgotten.

    It rises a few times in a long context, so every rise is kept with the token that brought it.

    Parameters
    ----------
    batch, kv_heads : axes of everything here
    device : where the exponents live

    Attributes
    ----------
    newest : int64 [batch, kv_heads, n], the maximum when each of the newest n tokens had come
    """

    def __init__(self, batch: int, kv_heads: int, device: torch.device) -> None:
        self.newest = torch.zeros(batch, kv_heads, 1, dtype=torch.int64, device=device)
        self._rises = [(0, self.newest)]

    def write(self, exponents: Tensor, tokens: int) -> None:
        """Go on over the newest tokens.

        Parameters
        ----------
        exponents : int64 [batch, kv_heads, n], the largest that each of the newest tokens wrote
        tokens : how many there are with them
        """
        running = torch.cat((self.newest[..., -1:], exponents), -1).cummax(-1).values
        rises = (running[..., 1:] != running[..., :-1]).flatten(0, 1).any(0)
        self.newest = running[..., 1:]
        first = tokens - exponents.shape[-1] + 1
        for place in rises.nonzero().flatten().tolist():
            self._rises.append((first + place, self.newest[..., place, None].clone()))

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        while self._rises[-1][0] > tokens:
            self._rises.pop()
        self.newest = self._rises[-1][1]

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is kept."""
        self.newest = function(self.newest)
        self._rises = [(tokens, function(maximum)) for tokens, maximum in self._rises]
