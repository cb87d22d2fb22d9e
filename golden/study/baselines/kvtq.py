"""KVTQ as published: residual ternary planes with the largest element as scale, nothing else.

``kvtq:4/3`` has four planes per key and three per value, like the paper's main setting. The format
has no rotation, no centring and no tiers. Planes and scales are stored as in this project's own
codes, which take less than the paper's 16 bits per scale.
"""

from __future__ import annotations

from dataclasses import replace

from golden.conditioning import Conditioning
from golden.llm.calibration import Calibration

__all__ = ["EXAMPLES", "PREFIX", "unconditioned"]

EXAMPLES = ("kvtq:4/3",)
PREFIX = "kvtq:"


def unconditioned(calibration: Calibration) -> list[Conditioning]:
    """Return conditioning that only converts keys and values to their static integer range."""
    plain = calibration.conditioning(feedback=False)
    return [replace(entry, rotate=False, key_centre=None) for entry in plain]
