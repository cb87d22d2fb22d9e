"""Golden value exponents: the largest exponent of all value scales written, per KV head.

Padding does not count. Which tokens are padding is unknown when they are written and known when
their attention is computed. So a cache keeps the exponents of each token until its attention
reports padding, and only the running maximum afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["ExponentHistory", "ValueExponents", "WrittenExponents"]


class ValueExponents:
    """The running maximum of docs/contract.md, restored when tokens are removed.

    The maximum rises only a few times in a long context, so every rise is kept with its token.

    Parameters
    ----------
    batch, kv_heads : leading axes of all arrays
    """

    def __init__(self, batch: int, kv_heads: int) -> None:
        self._rises = [(0, np.zeros((batch, kv_heads, 1), np.uint8))]

    @property
    def largest(self) -> np.ndarray:
        """The maximum so far, uint8 [batch, kv_heads, 1]."""
        return self._rises[-1][1]

    def write(self, exponents: np.ndarray, tokens: int) -> np.ndarray:
        """Update the maximum with the newest tokens.

        Parameters
        ----------
        exponents : uint8 [batch, kv_heads, n], the largest exponent that each of the newest n
            tokens wrote
        tokens : number of all tokens, including the newest

        Returns
        -------
        uint8 [batch, kv_heads, n], the maximum up to and including each of the newest n tokens
        """
        running = running_maximum(self.largest, exponents)
        if (running[..., -1:] > self.largest).any():
            before = np.concatenate((self.largest, running[..., :-1]), -1)
            first = tokens - exponents.shape[-1] + 1
            for place in (running != before).any((0, 1)).nonzero()[0].tolist():
                self._rises.append((first + place, running[..., place, None].copy()))
        return running

    def crop(self, tokens: int) -> None:
        """Remove all but the first `tokens` tokens."""
        while self._rises[-1][0] > tokens:
            self._rises.pop()

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to all arrays."""
        self._rises = [(tokens, mapped(function, maximum)) for tokens, maximum in self._rises]


class WrittenExponents(NamedTuple):
    """The exponents that the newest n tokens wrote, and the maximum before them.

    before : uint8 [batch, kv_heads, 1], the maximum over the tokens before the newest
    came : uint8 [batch, kv_heads, n], largest exponent of each token as first stored
    left : uint8 [batch, kv_heads, n], largest body exponent of the token that each token pushed out
        of the window; 0 if none
    tokens : number of all tokens, including the newest
    window : tokens in the window: token t pushes token t - window out
    """

    before: np.ndarray
    came: np.ndarray
    left: np.ndarray
    tokens: int
    window: int

    def counted(self, visible: Tensor | None) -> np.ndarray:
        """Return the largest exponent that each token wrote for tokens that any query sees.

        Parameters
        ----------
        visible : bool [batch, 1, I, T] of the newest T tokens, as in an attention job; all tokens
            when None

        Returns
        -------
        uint8 [batch, kv_heads, n]
        """
        if visible is None:
            return np.maximum(self.came, self.left)
        used = visible.any(-2).numpy(force=True)
        first = self.tokens - self.came.shape[-1]
        # tokens that no query sees any more wrote their exponents long ago; early in a context,
        # fewer tokens than a window precede the new ones
        before = self.tokens - used.shape[-1] + self.window
        known = np.pad(used, ((0, 0), (0, 0), (before, 0)), constant_values=True)
        came = self.came * known[..., self.window + first :]
        return np.maximum(came, self.left * known[..., first : self.tokens])

    def running(self, visible: Tensor | None) -> np.ndarray:
        """Return the maximum up to and including each token, uint8 [batch, kv_heads, n]."""
        return running_maximum(self.before, self.counted(visible))


class ExponentHistory:
    """The value exponents of a cache layer.

    Tokens whose padding is known only have a running maximum; newer tokens have their exponents.

    Parameters
    ----------
    batch, kv_heads : leading axes of all arrays
    window : tokens in the window of the layer's code

    Attributes
    ----------
    newest : exponents of the tokens whose padding is not known yet; never changed, only replaced
    """

    def __init__(self, batch: int, kv_heads: int, window: int) -> None:
        self._known = ValueExponents(batch, kv_heads)
        nothing = np.zeros((batch, kv_heads, 0), np.uint8)
        self.newest = WrittenExponents(self._known.largest, nothing, nothing, 0, window)

    def write(self, came: np.ndarray, left: np.ndarray) -> None:
        """Add the exponents of new tokens; see `WrittenExponents`."""
        newest = self.newest
        tokens = newest.tokens + came.shape[-1]
        if newest.came.shape[-1]:
            came = np.concatenate((newest.came, came), -1)
            left = np.concatenate((newest.left, left), -1)
        self._replace(came, left, tokens)

    def revise(self, left: np.ndarray) -> None:
        """Replace `left` of the newest tokens, which are not settled yet."""
        newest = self.newest
        kept = newest.left[..., : newest.left.shape[-1] - left.shape[-1]]
        self._replace(newest.came, np.concatenate((kept, left), -1), newest.tokens)

    def settle(self, written: WrittenExponents, visible: Tensor | None) -> None:
        """Record which of the newest tokens a query sees, once their attention knows this.

        Parameters
        ----------
        written : the value of `newest` when the tokens were appended; a value that `newest` no
            longer has was settled or removed, and changes nothing
        visible : see `WrittenExponents.counted`
        """
        if written is self.newest:
            self._known.write(written.counted(visible), written.tokens)
            self._replace(written.came[..., :0], written.left[..., :0], written.tokens)

    def crop(self, tokens: int) -> None:
        """Remove all but the first `tokens` tokens."""
        newest = self.newest
        kept = max(newest.came.shape[-1] - (newest.tokens - tokens), 0)
        self._known.crop(tokens)
        self._replace(newest.came[..., :kept], newest.left[..., :kept], tokens)

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to all arrays."""
        newest = self.newest
        self._known.map_batch(function)
        came, left = (mapped(function, x) for x in (newest.came, newest.left))
        self._replace(came, left, newest.tokens)

    def _replace(self, came: np.ndarray, left: np.ndarray, tokens: int) -> None:
        self.newest = WrittenExponents(self._known.largest, came, left, tokens, self.newest.window)


def running_maximum(before: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Return the running maxima of `exponents` from `before` on, [batch, kv_heads, n]."""
    return np.maximum.accumulate(np.concatenate((before, exponents), -1), -1)[..., 1:]


def mapped(function: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:
    """Apply a function of tensors to an array; return an array."""
    return function(torch.from_numpy(x)).numpy(force=True)
