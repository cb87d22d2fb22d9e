"""Vectors in two formats: a short one for most tokens, a long one for the first and the newest.

Tokens are appended in chunks, and each query of a chunk must see what it would have seen had they
come one by one. So a store keeps both versions of the tokens that turn short during a chunk until
the chunk's attention is done (`golden.versions`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from golden.baselines.codecs import Codec
from golden.versions import Versions

__all__ = ["TieredVectors"]


class TieredVectors:
    """Append-only store of one tensor (keys or values) of one layer.

    Parameters
    ----------
    short, long : formats; the long one has an entry for each token
    sinks : first tokens, which stay long
    short_tokens : how many tokens behind the sinks are short once there are n tokens in all;
        grows with n by whole entries of the short format
    head_dim : elements of a vector
    """

    def __init__(
        self,
        short: Codec,
        long: Codec,
        sinks: int,
        short_tokens: Callable[[int], int],
        head_dim: int,
    ) -> None:
        self._short_codec = short
        self._long_codec = long
        self._sinks = sinks
        self._short_tokens = short_tokens
        self._head_dim = head_dim
        self.tokens = 0
        self._short: tuple[Tensor, ...] | None = None
        self._long: tuple[Tensor, ...] | None = None  # sinks, then what follows the short tokens
        self._settled = 0  # short tokens whose long version is gone
        self._newest = 0  # tokens of the newest chunk

    def append(self, x: Tensor) -> None:
        """Append vectors float32 [batch, kv_heads, tokens, D], and encode those that turn short."""
        self.settle()
        self._long = _concatenated(self._long, self._long_codec.encode(x))
        self.tokens += x.shape[2]
        self._newest = x.shape[2]
        turning = self._short_tokens(self.tokens) - self._settled
        if turning:
            window = tuple(y[:, :, self._sinks :][:, :, :turning] for y in self._long)
            vectors = self._long_codec.decode(window, self._head_dim)
            self._short = _concatenated(self._short, self._short_codec.encode(vectors))

    def settle(self) -> None:
        """Drop the long versions of short tokens: the chunk's attention is done."""
        turned = self._short_tokens(self.tokens) - self._settled
        if turned and self._long is not None:
            self._long = tuple(
                torch.cat((y[:, :, : self._sinks], y[:, :, self._sinks + turned :]), 2)
                for y in self._long
            )
        self._settled += turned

    def versions(self) -> Versions:
        """All tokens, as the queries of the newest chunk see them."""
        if self._long is None:
            raise ValueError("nothing has been stored")
        longs = self._long_codec.decode(self._long, self._head_dim)
        batch, heads = longs.shape[:2]
        shorts = (
            longs.new_zeros(batch, heads, 0, self._head_dim)
            if self._short is None
            else self._short_codec.decode(self._short, self._head_dim)
        )
        before, changing = shorts.split((self._settled, shorts.shape[2] - self._settled), 2)
        counts = range(self.tokens - self._newest + 1, self.tokens + 1)
        turned = torch.tensor([self._short_tokens(n) - self._settled for n in counts])
        return Versions(
            torch.cat((longs[:, :, : self._sinks], before, longs[:, :, self._sinks :]), 2),
            changing,
            self._sinks + self._settled,
            torch.arange(changing.shape[2]) < turned[:, None],
        )

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 to what is stored."""
        self.settle()
        if self._long is not None:
            self._long = tuple(map(function, self._long))
        if self._short is not None:
            self._short = tuple(map(function, self._short))

    def stored_bytes(self) -> int:
        """Bytes of all tokens: codes, scales, zero points, padding."""
        self.settle()
        tensors = (*(self._short or ()), *(self._long or ()))
        return sum(y.numel() * y.element_size() for y in tensors)

    def stored_elements(self) -> int:
        """Numbers that those bytes stand for."""
        if self._long is None:
            return 0
        batch, heads = self._long[0].shape[:2]
        return batch * heads * self.tokens * self._head_dim


def _concatenated(old: tuple[Tensor, ...] | None, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if old is None:
        return new
    return tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True))
