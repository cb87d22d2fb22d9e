"""Golden quantizer: real vectors to ternary planes.

``balanced`` code of N digits: one scale s; element x becomes the integer ``round(x / s)``, clamped
to +-(3**N - 1) / 2, whose balanced ternary digits are the planes, weight 1 first. Dropping the k
lowest planes leaves the nearest integer of the N - k digit code under the scale 3**k s.

``residual`` code of N digits: N scales; ``T_c = round(r_c / s_c)`` clamped to a trit and
``r_{c+1} = r_c - s_c T_c``, starting with r_0 = x. This is the code of the KVTQ paper.

A scale is chosen per vector (or per residual), then *encoded*, and digits are computed against the
encoded scale, so what a reader multiplies by is what the writer rounded with. Rounding is to
nearest, halves away from zero: negating a vector negates its digits. A vector of zeros gets the
smallest scale and digits of zero. A vector too large for the largest scale saturates its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.planes import Planes
from golden.scale import decode_scale, encode_scale
from kvtq_hw.codes import SCALE_CHOICES, CodeKind, ScaleChoice
from kvtq_hw.config import EngineConfig

__all__ = ["balanced_digits", "dequantize", "quantize"]

# Scale over mean absolute value of least squared error on Gaussian vectors, which rotated vectors
# resemble, for codes of 1..5 digits; the optimum is flat. tests/test_quantizer.py finds them again.
_ABSMEAN_BALANCED = (1.52, 0.67, 0.268, 0.105, 0.041)
# The same for each plane of a residual code, relative to what the planes before have left. The
# fourth is best spent on the few elements that the first three have clipped.
_ABSMEAN_RESIDUAL = (1.53, 1.37, 1.57, 8.5, 1.42)
# Scales tried by `lsq` beside the one that clips nothing, relative to largest element over code.
_CLIP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


def quantize(
    config: EngineConfig, x: Tensor, kind: CodeKind, digits: int, scale: ScaleChoice
) -> Planes:
    """Quantize vectors, all at once.

    Parameters
    ----------
    x : float [..., T, D]
    digits : number of planes N, 1..max_planes
    scale : ``max`` is the smallest scale that clips nothing, for a residual code the paper's: the
        largest element; ``absmean`` takes a constant times the mean absolute value; ``lsq`` the
        scale with the least squared error among a few

    Returns
    -------
    Planes [..., T, N, D]

    Raises
    ------
    ValueError
        For an unknown kind or choice, digits beyond `max_planes`, or elements that are not finite.
    """
    if kind not in ("balanced", "residual"):
        raise ValueError(f"kind: {kind!r} is unknown; allowed are balanced, residual")
    if not 1 <= digits <= config.max_planes:
        raise ValueError(f"digits: {digits} is not allowed; must be 1..{config.max_planes}")
    if scale not in SCALE_CHOICES:
        raise ValueError(f"scale: {scale!r} is unknown; allowed are {', '.join(SCALE_CHOICES)}")
    if not torch.isfinite(x).all():
        raise ValueError("x holds an element that is not finite")
    x = x.double()
    if kind == "balanced":
        if scale == "max":
            fraction, exponent = _clip_free_scale(config, x, digits)
        else:
            ratio = _ABSMEAN_BALANCED[digits - 1]
            fraction, exponent = _choose_scale(config, x, digits, scale, ratio)
        code = _round_to_code(x, decode_scale(config, fraction, exponent), digits)
        absent = [torch.zeros_like(fraction)] * (digits - 1)
        unit = torch.zeros(*x.shape[:-1], digits, dtype=torch.bool, device=x.device)
        unit[..., 0] = True
        return Planes(
            balanced_digits(code, digits),
            unit,
            torch.stack([fraction, *absent], -1),
            torch.stack([exponent, *absent], -1),
        )
    trits, fractions, exponents = [], [], []
    rest = x
    for plane in range(digits):
        fraction, exponent = _choose_scale(config, rest, 1, scale, _ABSMEAN_RESIDUAL[plane])
        step = decode_scale(config, fraction, exponent)
        trit = _round_to_code(rest, step, 1)
        rest = rest - step[..., None] * trit
        trits.append(trit.to(torch.int8))
        fractions.append(fraction)
        exponents.append(exponent)
    unit = torch.ones(*x.shape[:-1], digits, dtype=torch.bool, device=x.device)
    return Planes(
        torch.stack(trits, -2), unit, torch.stack(fractions, -1), torch.stack(exponents, -1)
    )


def balanced_digits(code: Tensor, digits: int) -> Tensor:
    """Balanced ternary digits of integers in +-(3**N - 1) / 2: [..., D] to int8 [..., N, D]."""
    planes = []
    for _ in range(digits):
        trit = (code + 1).remainder(3) - 1
        planes.append(trit)
        code = (code - trit) // 3
    return torch.stack(planes, -2).to(torch.int8)


def dequantize(config: EngineConfig, planes: Planes) -> Tensor:
    """The real vectors that planes stand for, float64 [..., T, D], exact up to float64 sums."""
    scale = decode_scale(config, planes.fraction, planes.exponent)
    run = planes.run_index()
    first = torch.zeros_like(scale).scatter_add_(-1, run, torch.where(planes.unit, scale, 0.0))
    weight = first.gather(-1, run) * planes.run_weight()
    return (weight[..., None, :] @ planes.trits.double()).squeeze(-2)


def _clip_free_scale(config: EngineConfig, x: Tensor, digits: int) -> tuple[Tensor, Tensor]:
    """Smallest scale under which no element of x [..., D] is more than half a step off the code.

    Rounding to nearest instead would clip the largest elements of up to a third, which from four
    digits on costs more than all other rounding.
    """
    return encode_scale(config, x.abs().amax(-1) / (_code_max(digits) + 0.5), round_up=True)


def _choose_scale(
    config: EngineConfig, x: Tensor, digits: int, choice: ScaleChoice, absmean_ratio: float
) -> tuple[Tensor, Tensor]:
    """Encoded scale (fraction, exponent), int64 [...], of each vector x [..., D]."""
    if choice == "absmean":
        return encode_scale(config, x.abs().mean(-1) * absmean_ratio)
    largest = x.abs().amax(-1) / _code_max(digits)
    if choice == "max":
        return encode_scale(config, largest)
    ratios = torch.tensor(_CLIP_RATIOS, dtype=torch.float64, device=x.device)
    candidates = zip(
        encode_scale(config, largest[..., None] * ratios),
        _clip_free_scale(config, x, digits),
        strict=True,
    )
    fraction, exponent = (torch.cat((some, one[..., None]), -1) for some, one in candidates)
    steps = decode_scale(config, fraction, exponent)
    errors = torch.stack([_squared_error(x, step, digits) for step in steps.unbind(-1)], -1)
    best = errors.argmin(-1, keepdim=True)
    return fraction.gather(-1, best)[..., 0], exponent.gather(-1, best)[..., 0]


def _code_max(digits: int) -> int:
    return (3**digits - 1) // 2


def _round_to_code(x: Tensor, step: Tensor, digits: int) -> Tensor:
    """Integers nearest to x / step, halves away from zero, clamped to the code: int64 [..., D]."""
    ratio = x / step[..., None]
    nearest = torch.floor(ratio.abs() + 0.5).clamp(max=_code_max(digits)) * ratio.sign()
    return nearest.long()


def _squared_error(x: Tensor, step: Tensor, digits: int) -> Tensor:
    """Sum of squared errors of each vector rounded with a step: [...]."""
    return (x - step[..., None] * _round_to_code(x, step, digits)).square().sum(-1)
