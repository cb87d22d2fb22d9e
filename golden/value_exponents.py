"""Golden value exponents: the largest exponent of any value scale that was written, a KV head.

Padding does not count, and which tokens are padding is not known when they are written but when
their attention is computed. So a cache keeps the exponents of each token until its attention has
told, and from then on the running maximum alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["ExponentHistory", "ValueExponents", "WrittenExponents"]


class ValueExponents:
    """The running maximum of docs/contract.md, which goes back when tokens are forgotten.

    It rises a few times in a long context, so every rise is kept with the token that brought it.

    Parameters
    ----------
    batch, kv_heads : axes of everything here
    """

    def __init__(self, batch: int, kv_heads: int) -> None:
        self._rises = [(0, np.zeros((batch, kv_heads, 1), np.uint8))]

    @property
    def largest(self) -> np.ndarray:
        """The maximum so far, uint8 [batch, kv_heads, 1]."""
        return self._rises[-1][1]

    def write(self, exponents: np.ndarray, tokens: int) -> np.ndarray:
        """Go on over the newest tokens.

        Parameters
        ----------
        exponents : uint8 [batch, kv_heads, n], the largest that each of the newest tokens wrote
        tokens : how many there are with them

        Returns
        -------
        uint8 [batch, kv_heads, n], the maximum when each of the newest n tokens had come
        """
        running = running_maximum(self.largest, exponents)
        if (running[..., -1:] > self.largest).any():
            before = np.concatenate((self.largest, running[..., :-1]), -1)
            first = tokens - exponents.shape[-1] + 1
            for place in (running != before).any((0, 1)).nonzero()[0].tolist():
                self._rises.append((first + place, running[..., place, None].copy()))
        return running

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        while self._rises[-1][0] > tokens:
            self._rises.pop()

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is kept."""
        self._rises = [(tokens, mapped(function, maximum)) for tokens, maximum in self._rises]


class WrittenExponents(NamedTuple):
    """What the newest tokens wrote, and the maximum before them.

    before : uint8 [batch, kv_heads, 1], the maximum over the tokens in front of these
    came : uint8 [batch, kv_heads, n], largest exponent of each token as it came
    left : uint8 [batch, kv_heads, n], that of the token that it made leave the window; 0 if none
    tokens : how many there are with them
    window : tokens in the window: token t makes token t - window leave it
    """

    before: np.ndarray
    came: np.ndarray
    left: np.ndarray
    tokens: int
    window: int

    def counted(self, visible: Tensor | None) -> np.ndarray:
        """Largest exponent that each token wrote, of tokens that any query sees.

        Parameters
        ----------
        visible : bool [batch, 1, I, tokens], as in an attention job; all are seen when None

        Returns
        -------
        uint8 [batch, kv_heads, n]
        """
        if visible is None:
            return np.maximum(self.came, self.left)
        used = visible.any(-2).numpy(force=True)
        first = self.tokens - self.came.shape[-1]
        # at first there are fewer tokens than a window in front of the new ones
        known = np.pad(used, ((0, 0), (0, 0), (self.window, 0)))
        came = self.came * used[..., first : self.tokens]
        return np.maximum(came, self.left * known[..., first : self.tokens])

    def running(self, visible: Tensor | None) -> np.ndarray:
        """The maximum when each of the tokens had come, uint8 [batch, kv_heads, n]."""
        return running_maximum(self.before, self.counted(visible))


class ExponentHistory:
    """The exponents of a cache layer: maxima where padding is known, and what came since.

    Parameters
    ----------
    batch, kv_heads : axes of everything here
    window : tokens in the window of the layer's code

    Attributes
    ----------
    newest : what tokens wrote whose padding is not known yet, never changed, but replaced
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

    def settle(self, written: WrittenExponents, visible: Tensor | None) -> None:
        """Say which of the tokens any query sees, once their attention knows it.

        Parameters
        ----------
        written : the newest exponents when the tokens came; others have been settled, or forgotten,
            and change nothing
        visible : see `WrittenExponents.counted`
        """
        if written is self.newest:
            self._known.write(written.counted(visible), written.tokens)
            self._replace(written.came[..., :0], written.left[..., :0], written.tokens)

    def crop(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens."""
        newest = self.newest
        kept = max(newest.came.shape[-1] - (newest.tokens - tokens), 0)
        self._known.crop(tokens)
        self._replace(newest.came[..., :kept], newest.left[..., :kept], tokens)

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is kept."""
        newest = self.newest
        self._known.map_batch(function)
        came, left = (mapped(function, x) for x in (newest.came, newest.left))
        self._replace(came, left, newest.tokens)

    def _replace(self, came: np.ndarray, left: np.ndarray, tokens: int) -> None:
        self.newest = WrittenExponents(self._known.largest, came, left, tokens, self.newest.window)


def running_maximum(before: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Maxima of everything before and of exponents up to each, [batch, kv_heads, n]."""
    return np.maximum.accumulate(np.concatenate((before, exponents), -1), -1)[..., 1:]


def mapped(function: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:
    """An array of its own with what a function of tensors makes of `x`."""
    return function(torch.from_numpy(x)).numpy(force=True)
