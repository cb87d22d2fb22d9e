"""Cache formats from outside the project: two codecs, checked before anything is measured.

A codec turns vectors into the tensors that are stored, and back; the harness does the rest: it
holds the tensors, counts their bytes, and shows every query what it would see token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from golden.study.baselines.codecs import Codec, FloatCodec
from golden.study.baselines.format import BaselineFormat
from golden.study.baselines.layer import LayerRules, TierRule
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import NO_TIERS, Tiers

__all__ = ["CodecFormat"]


@dataclass(frozen=True)
class CodecFormat:
    """A cache format made of two codecs, for `kvtq_hw.evaluate`.

    Attributes
    ----------
    name : the name of its row
    keys, values : `golden.study.baselines.codecs.Codec` for keys, after RoPE, and for values
    sinks, window : the first and the newest tokens, which are stored in fp16

    Raises
    ------
    ValueError
        For a negative number of tokens.
    """

    name: str
    keys: Codec
    values: Codec
    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        Tiers(self.sinks, self.window)

    def for_model(self, layers: int, head_dim: int) -> BaselineFormat:
        """Return the format for a model with so many layers and elements per head vector.

        Raises
        ------
        UserError
            When a codec does not do what `Codec` says on random vectors.
        """
        for side, codec in (("keys", self.keys), ("values", self.values)):
            if problem := _problem(codec, head_dim):
                raise UserError(f"format {self.name!r}: codec of {side}: {problem}")
        rules = LayerRules(self._rule(self.keys), self._rule(self.values))
        return BaselineFormat(self.name, __name__, (rules,) * layers)

    def _rule(self, codec: Codec) -> TierRule:
        tiers, entry = Tiers(self.sinks, self.window), codec.tokens_per_entry
        # where every token is encoded as it comes, nothing rounds it to fp16 before
        at_once = tiers == NO_TIERS and entry == 1
        long = FloatCodec(torch.float32 if at_once else torch.float16)
        return TierRule(codec, long, _WholeEntries(tiers, entry), self.sinks)


@dataclass(frozen=True)
class _WholeEntries:
    """Tokens behind sinks and window are short as soon as they fill an entry of the codec."""

    tiers: Tiers
    entry: int

    def __call__(self, tokens: int) -> int:
        """Return how many of `tokens` tokens are short."""
        body = self.tiers.body(tokens)
        return body - body % self.entry


def _problem(codec: Codec, head_dim: int) -> str | None:
    """Say what a codec does wrong on two KV heads of three entries; None for nothing."""
    entry = codec.tokens_per_entry
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3 * entry, head_dim, generator=generator)
    stored = codec.encode(x)
    if not (isinstance(stored, tuple) and stored and all(isinstance(y, Tensor) for y in stored)):
        return "encode returns no tuple of tensors"
    for index, y in enumerate(stored):
        if y.shape[:3] != (1, 2, 3):
            return (
                f"stored tensor {index} has shape {list(y.shape)}; its first axes must be [batch, "
                f"kv_heads, tokens / tokens_per_entry], here [1, 2, 3, ...]"
            )
    decoded = codec.decode(stored, head_dim)
    if decoded.shape != x.shape or decoded.dtype != torch.float32:
        return (
            f"decode returns {str(decoded.dtype).removeprefix('torch.')} {list(decoded.shape)}; "
            f"must be float32 {list(x.shape)}"
        )
    if not decoded.isfinite().all():
        return "decode returns elements that are not finite"
    alone = codec.decode(codec.encode(x[:, :, :entry]), head_dim)
    if not torch.allclose(alone, decoded[:, :, :entry], rtol=1e-3, atol=1e-3):
        return "a token is decoded to another vector when later tokens are encoded with it"
    return None
