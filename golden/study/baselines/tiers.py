"""Vectors in two formats: a short format for most tokens, a long one for the first and the newest.

Tokens are appended in chunks, and each query of a chunk must see the same as if the tokens were
appended one by one. So a store keeps both versions of the tokens that turn short during a chunk
until the next chunk is appended (`golden.second_version`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.second_version import SecondVersion
from golden.study.baselines.codecs import Codec

__all__ = ["TieredVectors", "VersionedVectors", "WholeChunks", "never"]


def never(tokens: int) -> int:
    """Return zero: no token ever turns short."""
    return 0


@dataclass(frozen=True)
class WholeChunks:
    """Tokens turn short when a chunk of them is full."""

    chunk: int

    def __call__(self, tokens: int) -> int:
        """Return how many of `tokens` tokens are short."""
        return tokens - tokens % self.chunk


@dataclass(frozen=True)
class VersionedVectors:
    """The contents of a `TieredVectors` after a chunk; later chunks do not change it.

    short_codec, long_codec, head_dim : how the stored tensors are decoded
    short : the short tokens; None while there are none
    long : sinks, then the tokens that were not short before the chunk
    sinks : number of first tokens, which stay long
    settled : number of tokens that were short before the chunk
    turned : number of tokens that are short for each token of the chunk, int64 [n]
    """

    short_codec: Codec
    long_codec: Codec
    head_dim: int
    short: tuple[Tensor, ...] | None
    long: tuple[Tensor, ...]
    sinks: int
    settled: int
    turned: Tensor

    def read(self) -> tuple[Tensor, SecondVersion[Tensor] | None]:
        """Decode all tokens [batch, kv_heads, T, D] in the versions from before the chunk.

        The second version has the tokens that turned short during the chunk; None without any.
        """
        longs = self.long_codec.decode(self.long, self.head_dim)
        batch, heads = longs.shape[:2]
        shorts = (
            longs.new_zeros(batch, heads, 0, self.head_dim)
            if self.short is None
            else self.short_codec.decode(self.short, self.head_dim)
        )
        before, changing = shorts.split((self.settled, shorts.shape[2] - self.settled), 2)
        vectors = torch.cat((longs[:, :, : self.sinks], before, longs[:, :, self.sinks :]), 2)
        if not changing.shape[2]:
            return vectors, None
        place = torch.arange(changing.shape[2], device=longs.device)
        turned = (self.turned - self.settled).to(longs.device)
        seen = place < turned[:, None]
        return vectors, SecondVersion(changing, self.sinks + self.settled, seen)


class TieredVectors:
    """Append-only store of one tensor (keys or values) of one layer.

    Parameters
    ----------
    short, long : codecs; the long one has an entry for each token
    sinks : number of first tokens, which stay long
    short_tokens : function that returns how many tokens behind the sinks are short when there are
        n tokens in total; grows with n by whole entries of the short codec
    head_dim : elements per vector
    device : device of the tensors
    """

    def __init__(
        self,
        short: Codec,
        long: Codec,
        sinks: int,
        short_tokens: Callable[[int], int],
        head_dim: int,
        device: torch.device,
    ) -> None:
        self._short_codec = short
        self._long_codec = long
        self._sinks = sinks
        self._short_tokens = short_tokens
        self._head_dim = head_dim
        self.device = device
        self.tokens = 0
        self._short: tuple[Tensor, ...] | None = None
        self._long: tuple[Tensor, ...] | None = None  # sinks, then tokens after the settled ones
        self._settled = 0  # short tokens whose long version is gone

    def __copy__(self) -> TieredVectors:
        """Make an independent copy."""
        return copy.deepcopy(self)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TieredVectors:
        """Move the tensors; return this store, as a cache layer's offloading expects."""
        self._map(lambda y: y.to(device, non_blocking=non_blocking))
        self.device = torch.device(device)
        return self

    def append(self, x: Tensor) -> VersionedVectors:
        """Append vectors float32 [batch, kv_heads, tokens, D], and encode those that turn short."""
        self._settle()
        self._long = _concatenated(self._long, self._long_codec.encode(x))
        before, self.tokens = self.tokens, self.tokens + x.shape[2]
        turning = self._short_tokens(self.tokens) - self._settled
        if turning:
            window = tuple(y[:, :, self._sinks :][:, :, :turning] for y in self._long)
            vectors = self._long_codec.decode(window, self._head_dim)
            self._short = _concatenated(self._short, self._short_codec.encode(vectors))
        turned = [self._short_tokens(tokens) for tokens in range(before + 1, self.tokens + 1)]
        return VersionedVectors(
            self._short_codec,
            self._long_codec,
            self._head_dim,
            self._short,
            self._long,
            self._sinks,
            self._settled,
            torch.tensor(turned, dtype=torch.int64),
        )

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to the stored tensors."""
        self._map(function)

    def stored_bytes(self) -> int:
        """Return the bytes of all tokens in one version: codes, scales, zero points, padding."""
        tensors = (*(self._short or ()), *(self._long_once() or ()))
        return sum(y.numel() * y.element_size() for y in tensors)

    def stored_elements(self) -> int:
        """Return the number of vector elements that `stored_bytes` represents."""
        if self._long is None:
            return 0
        batch, heads = self._long[0].shape[:2]
        return batch * heads * self.tokens * self._head_dim

    def _settle(self) -> None:
        """Drop the long versions of short tokens, because the last chunk's attention is done."""
        self._long = self._long_once()
        self._settled = self._short_tokens(self.tokens)

    def _long_once(self) -> tuple[Tensor, ...] | None:
        """Return the long tokens without those that are also stored short."""
        turned = self._short_tokens(self.tokens) - self._settled
        if not turned or self._long is None:
            return self._long
        return tuple(
            torch.cat((y[:, :, : self._sinks], y[:, :, self._sinks + turned :]), 2)
            for y in self._long
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self._long is not None:
            self._long = tuple(map(function, self._long))
        if self._short is not None:
            self._short = tuple(map(function, self._short))


def _concatenated(old: tuple[Tensor, ...] | None, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if old is None:
        return new
    return tuple(torch.cat(pair, 2) for pair in zip(old, new, strict=True))
