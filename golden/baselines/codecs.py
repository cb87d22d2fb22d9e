"""Number formats of the baselines: vectors to stored tensors and back.

A codec's stored tensors have the axes [batch, kv_heads, tokens or groups of tokens, ...], so that a
store appends along axis 2 whatever the codec. Scales and zero points are stored in fp16, and codes
are rounded against the stored ones. All arithmetic is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from golden.baselines.bits import pack_bits, unpack_bits

__all__ = ["ChannelCodec", "Codec", "FloatCodec", "TokenCodec"]

_TINY = torch.finfo(torch.float16).tiny


class Codec(Protocol):
    """A number format.

    Attributes
    ----------
    tokens_per_entry : tokens that share one entry along axis 2 of the stored tensors
    """

    @property
    def tokens_per_entry(self) -> int: ...

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Stored tensors of vectors float32 [batch, kv_heads, tokens, D]."""
        ...

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """The vectors that stored tensors stand for, float32 [batch, kv_heads, tokens, D]."""
        ...


@dataclass(frozen=True)
class FloatCodec:
    """Floating point numbers of a type."""

    dtype: torch.dtype
    tokens_per_entry: int = 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rounded to the type."""
        return (x.to(self.dtype),)

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Exact."""
        return stored[0].float()


@dataclass(frozen=True)
class TokenCodec:
    """Integers under one scale (and one zero point) for each group of elements of a vector.

    symmetric : ``x ~ scale * n`` with ``|n| <= 2**(bits - 1) - 1`` and ``scale = max|x| / n_max``;
        otherwise ``x ~ low + scale * n`` with ``0 <= n < 2**bits``, ``low = min x`` and
        ``scale = (max x - min x) / (2**bits - 1)``
    group : elements that share a scale; None for the whole vector
    """

    bits: int
    symmetric: bool
    group: int | None = None
    tokens_per_entry: int = 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Packed codes and scales, and zero points where the format has them."""
        groups = x.unflatten(-1, (-1, self.group or x.shape[-1]))
        if self.symmetric:
            largest = (1 << self.bits - 1) - 1
            scale = (groups.abs().amax(-1) / largest).clamp(min=_TINY).half()
            codes = (groups / scale.float()[..., None]).round().clamp(-largest, largest) + largest
            return pack_bits(codes.flatten(-2).long(), self.bits), scale
        codes, scale, low = _asymmetric(groups, self.bits)
        return pack_bits(codes.flatten(-2), self.bits), scale[..., 0], low[..., 0]

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Integers times scale, plus zero point."""
        codes = unpack_bits(stored[0], self.bits, head_dim).float()
        groups = codes.unflatten(-1, (-1, self.group or head_dim))
        scale = stored[1].float()[..., None]
        if self.symmetric:
            return ((groups - ((1 << self.bits - 1) - 1)) * scale).flatten(-2)
        return (groups * scale + stored[2].float()[..., None]).flatten(-2)


@dataclass(frozen=True)
class ChannelCodec:
    """Asymmetric integers, a scale and zero point for each channel of `tokens_per_entry` tokens.

    An element is ``low + scale * n`` with ``0 <= n < 2**bits``, low and scale those of its channel
    among the tokens of its group. The number of tokens must be a multiple of the group.
    """

    bits: int
    tokens_per_entry: int

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Packed codes [..., groups, tokens, bytes], scales and zero points [..., groups, D]."""
        codes, scale, low = _asymmetric(x.unflatten(2, (-1, self.tokens_per_entry)).mT, self.bits)
        return pack_bits(codes.mT, self.bits), scale[..., 0], low[..., 0]

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Integers times the channel's scale, plus its zero point."""
        packed, scale, low = stored
        codes = unpack_bits(packed, self.bits, head_dim).float()
        return (codes * scale.float()[..., None, :] + low.float()[..., None, :]).flatten(2, 3)


def _asymmetric(groups: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int64 [..., n], scales and lowest elements fp16 [..., 1] of groups float32 [..., n]."""
    levels = (1 << bits) - 1
    low = groups.amin(-1, keepdim=True).half()
    scale = ((groups.amax(-1, keepdim=True) - low.float()) / levels).clamp(min=_TINY).half()
    codes = ((groups - low.float()) / scale.float()).round().clamp(0, levels)
    return codes.long(), scale, low
