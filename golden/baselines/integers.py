"""Integers per token: ``int8``, ``int4``, ``int3``, ``int2`` with settings.

A key or value vector is rounded to integers of that many bits under one fp16 scale, which its
largest element gives. Settings:

- ``asymmetric``: a zero point beside the scale, all ``2**bits`` levels in use
- ``group=N``: a scale (and zero point) for every N elements instead of the whole vector
- ``conditioned``: centring and rotation exactly as the ternary codes have them
- ``sinks=N``, ``window=N``: the first and the newest N tokens in 8-bit integers; a token that
  leaves the window is rounded again from its 8-bit version
"""

from __future__ import annotations

import re

import torch

from golden.baselines.codecs import Codec, FloatCodec, TokenCodec
from golden.baselines.format import BaselineFormat
from golden.baselines.layer import TierRule
from golden.baselines.spelling import divides, integer, split
from golden.formats import FormatInputs

__all__ = ["EXAMPLES", "parse"]

EXAMPLES = ("int4", "int4,asymmetric,group=32", "int2,conditioned,sinks=4,window=32")
_SETTINGS = ("asymmetric", "group=", "conditioned", "sinks=", "window=")


def parse(text: str, inputs: FormatInputs) -> BaselineFormat | None:
    """The format that a text spells, if it is of this family."""
    match = re.match(r"int([2348])(?=,|$)", text)
    if match is None:
        return None
    _, settings = split(text, _SETTINGS)
    bits = int(match[1])
    group = integer(text, settings, "group", 0, 1) or None
    divides(text, group, inputs.language_model.head_dim)
    sinks = integer(text, settings, "sinks", 0, 1)
    window = integer(text, settings, "window", 0, 1)
    short = TokenCodec(bits, "asymmetric" not in settings, group)
    # without a window every token is rounded when it comes, and nothing is held in between
    long: Codec = TokenCodec(8, True) if sinks or window else FloatCodec(torch.float32)
    rule = TierRule(short, long, lambda tokens: max(0, tokens - sinks - window), sinks)
    calibration = inputs.calibration() if "conditioned" in settings else None
    return BaselineFormat(text, inputs.language_model.layers, rule, rule, calibration)
