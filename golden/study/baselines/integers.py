"""Integers per token: ``int8``, ``int4``, ``int3``, ``int2`` with settings.

The name gives the number of bits. A key or value vector is rounded to integers under one fp16
scale, which the largest element of the vector determines. Settings:

- ``asymmetric``: a zero point beside the scale, all ``2**bits`` levels in use
- ``clip``: the scale with the least squared error of the vector among a few smaller ones
- ``group=N``: a scale (and zero point) for every N elements instead of the whole vector
- ``conditioned``: centring and rotation exactly as for the ternary codes
- ``feedback``: rounding with the feedback matrices of the ternary codes; needs ``conditioned``
- ``sinks=N``, ``window=N``: the first and the newest N tokens in 8-bit integers; a token that
  leaves the window is rounded again from its 8-bit version
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from golden.feedback import Feedback
from golden.study.baselines.codecs import Codec, FloatCodec, TokenCodec
from golden.study.baselines.format import BaselineFormat
from golden.study.baselines.layer import LayerRules, TierRule
from golden.study.baselines.spelling import divides, integer, split
from golden.study.baselines.transforms import IntegerConditioning
from golden.study.formats import FormatInputs
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import NO_TIERS, Tiers

__all__ = ["EXAMPLES", "parse"]

EXAMPLES = ("int4", "int4,asymmetric,group=32", "int3,clip,conditioned,feedback,sinks=4,window=32")
_SETTINGS = ("asymmetric", "clip", "group=", "conditioned", "feedback", "sinks=", "window=")


def parse(text: str, inputs: FormatInputs) -> BaselineFormat | None:
    """Parse a spelled format; return None if it is not of this family."""
    match = re.match(r"int([2348])(?=,|$)", text)
    if match is None:
        return None
    _, settings = split(text, _SETTINGS)
    bits = int(match[1])
    group = integer(text, settings, "group", 0, 1) or None
    divides(text, group, inputs.language_model.head_dim)
    tiers = Tiers(*(integer(text, settings, name, 0, 1) for name in ("sinks", "window")))
    short = TokenCodec(bits, "asymmetric" not in settings, group, "clip" in settings)
    # without tiers every token is rounded when it is appended, and no long version is kept
    long: Codec = TokenCodec(8, True) if tiers != NO_TIERS else FloatCodec(torch.float32)

    def rule(feedback: Feedback | None) -> TierRule:
        matrices = None if feedback is None else _matrices(feedback)
        return TierRule(
            replace(short, feedback=matrices),
            long,
            tiers.body,
            tiers.sinks,
        )

    if "conditioned" not in settings:
        if "feedback" in settings:
            raise UserError(f"code: {text!r}: setting 'feedback' needs 'conditioned' as well")
        plain = LayerRules(rule(None), rule(None))
        return BaselineFormat(text, __name__, (plain,) * inputs.language_model.layers)
    calibration = inputs.calibration()
    rules = tuple(
        LayerRules(
            rule(entry.key_feedback),
            rule(entry.value_feedback),
            IntegerConditioning(entry),
        )
        for entry in calibration.conditioning(feedback="feedback" in settings)
    )
    return BaselineFormat(text, __name__, rules, calibration)


def _matrices(feedback: Feedback) -> Tensor:
    """Return U of every KV head, float32 [kv_heads, D, D]."""
    return torch.ldexp(feedback.factors.float(), -feedback.shift[..., :, None])
