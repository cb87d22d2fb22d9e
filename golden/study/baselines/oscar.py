"""OSCAR (Zhou et al., "OSCAR: Offline Spectral Covariance-Aware Rotation for 2-bit KV Cache
Quantization", arXiv 2605.17757).

Keys and values are rotated (`golden.study.spectral`: one rotation per layer and KV head)
and stored as asymmetric integers of two bits per token. Before rounding, an element of the rotated
vector is clipped to the magnitude at the 96th percentile of the vector's magnitudes for keys, at
the 92nd for values. A group of 128 elements has a scale and a zero point; so has the whole vector
if 128 does not divide the head dimension. The first 64 and the newest 256 tokens stay in bf16.

Scales and zero points take 16 bits each, as the paper counts them: 2.25 bits for groups of 128, and
2.28 with the tokens in bf16 in a context of 128K tokens. (The authors' program stores them in 32.)
Rotations belong to the model and are not counted: per KV head two matrices of D x D, of which that
of values can be folded into the projections.

Settings:

- ``group=G``, ``sinks=N``, ``window=N``: other numbers than these
- ``clip=K/V``: other percentiles than 96/92, which belong to models with vectors of 128 elements;
  100/100 clips nothing
- ``tier=int8``: the first and the newest tokens in 8-bit integers under one scale, as the other
  integers of this program have them
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.study.baselines.codecs import Codec, FloatCodec, TokenCodec
from golden.study.baselines.format import BaselineFormat
from golden.study.baselines.layer import LayerRules, TierRule
from golden.study.baselines.spelling import Settings, divides, integer, split
from golden.study.baselines.transforms import Rotation
from golden.study.formats import FormatInputs
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import Tiers

__all__ = ["EXAMPLES", "PercentileCodec", "parse"]

EXAMPLES = ("oscar", "oscar,sinks=4,window=32")

_PERCENTS = (96, 92)
_GROUP = 128
_TIERS: dict[str | None, Codec] = {
    None: FloatCodec(torch.bfloat16),
    "bf16": FloatCodec(torch.bfloat16),
    "int8": TokenCodec(8, True),
}


@dataclass(frozen=True)
class PercentileCodec:
    """Integers of a `TokenCodec` after clipping each vector at a percentile of its magnitudes.

    Of the D magnitudes in ascending order, number ``floor(percent * D / 100)``, counted from zero,
    is the largest that remains.
    """

    codec: TokenCodec
    percent: int
    tokens_per_entry: int = 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Clip and encode."""
        index = min(self.percent * x.shape[-1] // 100, x.shape[-1] - 1)
        limit = x.abs().sort(-1).values[..., index, None]
        return self.codec.encode(x.clamp(-limit, limit))

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        """Decode as the integers' codec does."""
        return self.codec.decode(stored, head_dim)


def parse(text: str, inputs: FormatInputs) -> BaselineFormat | None:
    """Parse a spelled format; return None if it is not of this family."""
    if text.split(",")[0] != "oscar":
        return None
    _, settings = split(text, ("clip=", "group=", "sinks=", "window=", "tier="))
    percents = _percents(text, settings)
    head_dim = inputs.language_model.head_dim
    group = integer(text, settings, "group", head_dim if head_dim % _GROUP else _GROUP, 1)
    divides(text, group, head_dim)
    sinks = integer(text, settings, "sinks", 64, 0)
    tiers = Tiers(sinks, integer(text, settings, "window", 256, 0))
    tier = settings.get("tier")
    if tier not in _TIERS:
        raise UserError(f"code: {text!r}: tier={tier} is not allowed; allowed are bf16 and int8")
    keys, values = (
        TierRule(
            PercentileCodec(TokenCodec(2, False, group), percent),
            _TIERS[tier],
            tiers.body,
            tiers.sinks,
        )
        for percent in percents
    )
    rotations = inputs.rotations(inputs.language_model)
    pairs = zip(rotations.key_rotations, rotations.value_rotations, strict=True)
    rules = tuple(LayerRules(keys, values, Rotation(*pair)) for pair in pairs)
    return BaselineFormat(text, __name__, rules, rotations)


def _percents(text: str, settings: Settings) -> tuple[int, int]:
    """Return the percentiles of keys and values.

    Raises
    ------
    UserError
        When the setting is not two whole numbers 1..100.
    """
    value = settings.get("clip")
    if value is None:
        return _PERCENTS
    match = re.fullmatch(r"(100|[1-9][0-9]?)/(100|[1-9][0-9]?)", value)
    if match is None:
        raise UserError(
            f"code: {text!r}: clip={value} is not allowed; must be two percentiles 1..100, as 96/92"
        )
    return int(match[1]), int(match[2])
