"""Variants of a captured attention: the same vectors as integers, or digits without zeros."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from golden.llm.capture import Captured
from golden.planes import Planes
from golden.scale import decode_scale, encode_scale
from kvtq_hw.contract.config import EngineConfig

__all__ = ["as_integers", "without_zeros"]

_GUARD = 8


def as_integers(captured: Captured, cache_format: str) -> Captured:
    """Return the same attention on an engine with multipliers, in an integer cache format.

    The integers are made from the vectors before ternary rounding. Each vector is quantized by its
    largest element, ``s >= max|v| / (2**(b-1) - 1)`` and ``q = round(v / s)``, ties away from zero.
    `value_exponent` is the largest exponent of these scales; queries stay unchanged.

    Parameters
    ----------
    captured : a job of a ternary engine
    cache_format : "int8" or "int4"
    """
    one = {"max_planes": 1, "key_planes_per_cycle": 1, "value_planes_per_cycle": 1}
    fields = captured.config.model_dump() | one
    config = EngineConfig.model_validate(fields | {"cache_format": cache_format})
    keys, values = (
        _integers(config, vectors.long())
        for vectors in (captured.key_vectors, captured.value_vectors)
    )
    job = dataclasses.replace(
        captured,
        config=config,
        keys=keys,
        values=values,
        key_depths=torch.ones_like(captured.key_depths),
        value_depths=torch.ones_like(captured.value_depths),
        value_exponent=int(values.exponent.max()),
    )
    return dataclasses.replace(job, expected=job.golden())


def without_zeros(captured: Captured, tensor: str) -> Captured:
    """Replace each zero digit of a job by +1 or -1, drawn with a fixed seed.

    The extra energy of the lanes, compared with the original job, is what zeros save. Other keys
    give other weights, so blocks behind the key lanes are not comparable. Other values change
    nothing before the value lanes.

    Parameters
    ----------
    tensor : "keys" or "values", the side whose zeros are replaced
    """
    generator = torch.Generator().manual_seed(0)
    of_keys = tensor == "keys"
    planes, depths = (
        (captured.keys, captured.key_depths)
        if of_keys
        else (captured.values, captured.value_depths)
    )
    drawn = torch.randint(0, 2, planes.digits.shape, generator=generator, dtype=torch.int8)
    there = torch.arange(planes.digits.shape[-2]) < depths[:, None]
    zero = (planes.digits == 0) & there[..., None]
    filled = dataclasses.replace(planes, digits=torch.where(zero, 2 * drawn - 1, planes.digits))
    job = dataclasses.replace(
        captured,
        keys=filled if of_keys else captured.keys,
        values=captured.values if of_keys else filled,
    )
    return dataclasses.replace(job, expected=job.golden())


def _integers(config: EngineConfig, vectors: Tensor) -> Planes:
    """Quantize vectors int64 [T, D] to one "plane" of integers each."""
    top = config.code_max - 1
    largest = vectors.abs().amax(-1)
    numerator = -(-(largest << _GUARD) // top)
    fraction, exponent = encode_scale(config, numerator, _GUARD, round_up=True)
    scale = decode_scale(config, fraction, exponent)[..., None]
    integers = _rounded(vectors, scale).clamp(-top, top).to(torch.int8)
    return Planes(
        integers[..., None, :],
        torch.ones_like(fraction, dtype=torch.bool)[..., None],
        fraction[..., None],
        exponent[..., None],
    )


def _rounded(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide by positive numbers and round to nearest integers, ties away from zero."""
    return numerator.sign() * ((2 * numerator.abs() + denominator) // (2 * denominator))
