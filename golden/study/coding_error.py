"""Rounding errors of keys and values stored in the body of a code."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from golden.cache.tiered_store import TieredStore
from golden.conditioning import Conditioning
from golden.dequantizer import dequantize
from golden.hadamard import inverse_hadamard
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side
from kvtq_hw.contract.tiers import NO_TIERS

__all__ = ["coding_errors"]


def coding_errors(
    config: EngineConfig,
    code: CacheCode,
    side: Side,
    vectors: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """Return the errors of vectors [heads, T, D] in the body's digits, float64 [heads, T, D].

    The errors are in the model's own units and for vectors neither rotated nor equalized;
    keys include their centres. Sinks and window are ignored.
    """
    if side == "key":
        exponent, feedback = conditioning.key_exponent, conditioning.key_feedback
        integers, _ = conditioning.condition_keys(vectors[None])
    else:
        exponent, feedback = conditioning.value_exponent, conditioning.value_feedback
        integers, _ = conditioning.condition_values(vectors[None])
    body = replace(code, tiers=NO_TIERS)
    used = feedback if code.feedback else None
    store = TieredStore(config, body, side, used, 1, len(vectors), vectors.device)
    store.append(integers)
    moved = (dequantize(config, store.planes()) - integers)[0].double()
    unrotated = inverse_hadamard(moved) if conditioning.rotate else moved
    mapped, equalizer = unrotated * 2.0**exponent, conditioning.equalizer
    if equalizer is None:
        return mapped
    unmapped = equalizer.unmapped_keys if side == "key" else equalizer.unmapped_values
    return unmapped(mapped)
