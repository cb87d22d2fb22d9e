"""Number formats of the baselines: vectors to stored tensors and back.

The stored tensors of every codec have the axes [batch, kv_heads, tokens or groups of tokens, ...],
so a store always appends along axis 2. Scales and zero points are stored in fp16, and codes are
rounded against the stored scales and zero points. All arithmetic is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from golden.study.baselines.bits import pack_bits, unpack_bits

__all__ = ["ChannelCodec", "Codec", "FloatCodec", "TokenCodec"]

_CLIP_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
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
        """Encode vectors float32 [batch, kv_heads, tokens, D] to stored tensors."""
        ...

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Decode stored tensors to vectors float32 [batch, kv_heads, tokens, D]."""
        ...


@dataclass(frozen=True)
class FloatCodec:
    """Floating-point numbers of one dtype."""

    dtype: torch.dtype
    tokens_per_entry: int = 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Round to the dtype."""
        return (x.to(self.dtype),)

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Convert to float32, exactly."""
        return stored[0].float()


@dataclass(frozen=True)
class TokenCodec:
    """Integers under one scale (and one zero point) for each group of elements of a vector.

    symmetric : ``x ~ scale * n`` with ``|n| <= 2**(bits - 1) - 1`` and ``scale = max|x| / n_max``;
        otherwise ``x ~ low + scale * n`` with ``0 <= n < 2**bits``, ``low = min x`` and
        ``scale = (max x - min x) / (2**bits - 1)``
    group : elements that share a scale; None for the whole vector
    clip : use the range with the least squared error among a few smaller ranges with equal middle
    feedback : U, float32 [kv_heads, D, D], strictly upper triangular: element k is rounded after
        adding ``sum_{j<k} (x_j - xhat_j) U_jk``, as `golden.feedback` has it; None adds nothing
    """

    bits: int
    symmetric: bool
    group: int | None = None
    clip: bool = False
    feedback: Tensor | None = None
    tokens_per_entry: int = 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode to packed codes and scales, and zero points where the format has them."""
        parameters = self._parameters(x, 1.0)
        if self.clip:
            least = self._squared_errors(x, parameters)
            for ratio in _CLIP_RATIOS:
                others = self._parameters(x, ratio)
                errors = self._squared_errors(x, others)
                pairs = zip(others, parameters, strict=True)
                parameters = tuple(torch.where(errors < least, *pair) for pair in pairs)
                least = torch.minimum(errors, least)
        codes = self._codes(x, *self._per_element(parameters, x.shape[-1]), self.feedback)
        return pack_bits(codes, self.bits), *parameters

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Multiply integers by their scale and add the zero point, if any."""
        codes = unpack_bits(stored[0], self.bits, head_dim).float()
        scale, low = self._per_element(stored[1:], head_dim)
        return codes * scale + low

    @property
    def _largest(self) -> int:
        """Largest magnitude of a symmetric code."""
        return (1 << self.bits - 1) - 1

    def _parameters(self, x: Tensor, ratio: float) -> tuple[Tensor, ...]:
        """Return scale, and zero point if any, for `ratio` of the range: fp16 [..., groups]."""
        groups = x.unflatten(-1, (-1, self.group or x.shape[-1]))
        if self.symmetric:
            return ((ratio * groups.abs().amax(-1) / self._largest).clamp(min=_TINY).half(),)
        scale, low = _asymmetric_parameters(groups, self.bits, ratio)
        return scale[..., 0], low[..., 0]

    def _squared_errors(self, x: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        """Return the squared error of each group rounded without feedback, [..., groups]."""
        scale, low = self._per_element(parameters, x.shape[-1])
        errors = x - (self._codes(x, scale, low, None) * scale + low)
        return errors.square().unflatten(-1, (-1, self.group or x.shape[-1])).sum(-1)

    def _per_element(self, parameters: tuple[Tensor, ...], dim: int) -> tuple[Tensor, Tensor]:
        """Return the scale, and the value of code zero, of each element: float32 [..., D]."""
        repeats = self.group or dim
        scale = parameters[0].float().repeat_interleave(repeats, -1)
        if self.symmetric:
            return scale, -self._largest * scale
        return scale, parameters[1].float().repeat_interleave(repeats, -1)

    def _codes(self, x: Tensor, scale: Tensor, low: Tensor, feedback: Tensor | None) -> Tensor:
        """Round to codes int64 [..., D], which start at 0."""
        top = 2 * self._largest if self.symmetric else (1 << self.bits) - 1
        if feedback is None:
            return ((x - low) / scale).round().clamp(0, top).long()
        feedback = feedback.to(x.device)
        codes, carried = torch.empty_like(x), torch.zeros_like(x)
        for k in range(x.shape[-1]):
            wanted = x[..., k] + carried[..., k]
            codes[..., k] = ((wanted - low[..., k]) / scale[..., k]).round().clamp(0, top)
            error = x[..., k] - (codes[..., k] * scale[..., k] + low[..., k])
            carried += error[..., None] * feedback[:, None, k]
        return codes.long()


@dataclass(frozen=True)
class ChannelCodec:
    """Asymmetric integers with a scale and zero point per channel and group of tokens.

    A group has `tokens_per_entry` tokens; the number of tokens must be a multiple of it. An element
    is ``low + scale * n`` with ``0 <= n < 2**bits``; low and scale belong to the element's channel
    in its group.
    """

    bits: int
    tokens_per_entry: int

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode to codes [..., groups, tokens, bytes], scales and zero points [..., groups, D]."""
        channels = x.unflatten(2, (-1, self.tokens_per_entry)).mT
        scale, low = _asymmetric_parameters(channels, self.bits)
        exact = (channels - low.float()) / scale.float()
        codes = exact.round().clamp(0, (1 << self.bits) - 1).long()
        return pack_bits(codes.mT, self.bits), scale[..., 0], low[..., 0]

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Multiply integers by the channel's scale and add the channel's zero point."""
        packed, scale, low = stored
        codes = unpack_bits(packed, self.bits, head_dim).float()
        return (codes * scale.float()[..., None, :] + low.float()[..., None, :]).flatten(2, 3)


def _asymmetric_parameters(groups: Tensor, bits: int, ratio: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return scale and lowest level, fp16 [..., 1], for the middle `ratio` of the groups' range.

    Groups are [..., n].
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low, high = low + (1 - ratio) / 2 * (high - low), high - (1 - ratio) / 2 * (high - low)
    low = low.half()
    return ((high - low.float()) / ((1 << bits) - 1)).clamp(min=_TINY).half(), low
