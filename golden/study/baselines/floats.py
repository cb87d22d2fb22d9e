"""Keys and values as 16-bit floating point numbers: ``fp16``, ``bf16``."""

from __future__ import annotations

import torch

from golden.study.baselines.codecs import FloatCodec
from golden.study.baselines.format import BaselineFormat
from golden.study.baselines.layer import LayerRules, TierRule
from golden.study.baselines.spelling import split
from golden.study.baselines.tiers import never
from golden.study.formats import FormatInputs

__all__ = ["EXAMPLES", "parse"]

EXAMPLES = ("fp16", "bf16")
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def parse(text: str, inputs: FormatInputs) -> BaselineFormat | None:
    """Parse a spelled format; return None if it is not of this family."""
    head, _ = split(text, ()) if text.split(",")[0] in _TYPES else ("", {})
    if head not in _TYPES:
        return None
    codec = FloatCodec(_TYPES[head])
    rule = TierRule(codec, codec, never)
    return BaselineFormat(text, __name__, (LayerRules(rule, rule),) * inputs.language_model.layers)
