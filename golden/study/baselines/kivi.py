"""KIVI (Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024).

``kivi:2`` and ``kivi:4`` are asymmetric integers of 2 and 4 bits. Keys are quantized per channel in
groups of G consecutive tokens, values per token in groups of G channels. The newest tokens stay in
fp16, as in the paper's Algorithm 1 with residual length R: for values the newest R tokens, for keys
all tokens since the last multiple of R (0 to R - 1 tokens). The settings are ``group=G`` and
``window=R``, both 32 by default; R is a multiple of G.
"""

from __future__ import annotations

import re

import torch

from golden.study.baselines.codecs import ChannelCodec, FloatCodec, TokenCodec
from golden.study.baselines.format import BaselineFormat
from golden.study.baselines.layer import LayerRules, TierRule
from golden.study.baselines.spelling import divides, integer, split
from golden.study.baselines.tiers import WholeChunks
from golden.study.formats import FormatInputs
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import Tiers

__all__ = ["EXAMPLES", "parse"]

EXAMPLES = ("kivi:2", "kivi:4,group=32,window=128")


def parse(text: str, inputs: FormatInputs) -> BaselineFormat | None:
    """Parse a spelled format; return None if it is not of this family."""
    if not text.startswith("kivi:"):
        return None
    head, settings = split(text, ("group=", "window="))
    match = re.fullmatch(r"kivi:([24])", head)
    if match is None:
        raise UserError(f"code: {text!r} is not a KIVI code; allowed are kivi:2 and kivi:4")
    bits = int(match[1])
    group = integer(text, settings, "group", 32, 1)
    window = integer(text, settings, "window", 32, 1)
    if window % group:
        raise UserError(f"code: {text!r}: window={window} is not a multiple of group={group}")
    divides(text, group, inputs.language_model.head_dim)
    half = FloatCodec(torch.float16)
    keys = TierRule(ChannelCodec(bits, group), half, WholeChunks(window))
    values = TierRule(TokenCodec(bits, False, group), half, Tiers(window=window).body)
    return BaselineFormat(
        text, __name__, (LayerRules(keys, values),) * inputs.language_model.layers
    )
