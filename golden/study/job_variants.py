"""A captured attention with something in its place: the same vectors as integers, or no zeros."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from golden.engine import attend
from golden.llm.capture import Captured
from golden.planes import Planes
from golden.scale import decode_scale, encode_scale
from kvtq_hw.contract.config import EngineConfig

__all__ = ["as_integers", "without_zeros"]

_GUARD = 8


def as_integers(captured: Captured, cache_format: str) -> Captured:
    """The attention of a job over what its cache holds, in an integer cache format.

    Each vector is quantized by its largest element, ``s >= max|v| / (2**(b-1) - 1)`` and
    ``q = round(v / s)``, ties away from zero. Queries stay as they are.

    Parameters
    ----------
    captured : of a ternary engine
    cache_format : "int8" or "int4"
    """
    config = EngineConfig.model_validate(
        captured.config.model_dump() | {"cache_format": cache_format, "max_planes": 1}
    )
    keys, values = (
        _integers(captured.config, config, planes) for planes in (captured.keys, captured.values)
    )
    exponent = max(captured.value_exponent, int(values.exponent.max()))
    attention = attend(config, captured.queries, keys, values, exponent=torch.tensor([exponent]))
    return dataclasses.replace(
        captured,
        config=config,
        keys=keys,
        values=values,
        key_depths=torch.ones_like(captured.key_depths),
        value_depths=torch.ones_like(captured.value_depths),
        value_exponent=exponent,
        expected=attention.values[:, 0],
    )


def without_zeros(captured: Captured, tensor: str) -> Captured:
    """The job with a digit of +1 or -1, drawn by a fixed seed, in the place of each zero.

    What the lanes take more than with the job itself is what zeros are worth. Other keys make other
    weights: behind the keys' lanes nothing compares. Other values change nothing before their own.

    Parameters
    ----------
    tensor : "keys" or "values", whose zeros are replaced
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


def _integers(ternary: EngineConfig, config: EngineConfig, planes: Planes) -> Planes:
    merged = planes.merged()
    scales = decode_scale(ternary, merged.fraction, merged.exponent) * merged.unit
    vectors = (merged.digits.long() * scales[..., None]).sum(-2)  # [T, D]
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
    """Nearest integers of quotients by positive numbers, ties away from zero."""
    return numerator.sign() * ((2 * numerator.abs() + denominator) // (2 * denominator))
