"""KVTQ as published: residual ternary planes, each under its own largest element, nothing else.

``kvtq:4/3`` has four planes for a key and three for a value, as the paper's main setting does. No
rotation, no centring, no tiers. Planes and scales are stored as those of our own codes are, which
is less than the paper's 16 bits a scale.
"""

from __future__ import annotations

from dataclasses import replace

from golden.conditioning import Conditioning
from golden.llm.calibration import Calibration

__all__ = ["EXAMPLES", "PREFIX", "unconditioned"]

EXAMPLES = ("kvtq:4/3",)
PREFIX = "kvtq:"


def unconditioned(calibration: Calibration) -> list[Conditioning]:
    """Conditioning that leaves keys and values as they are, up to their static number range."""
    return [replace(entry, rotate=False, key_centre=None) for entry in calibration.conditioning()]
