"""Golden quantizer: integer vectors to ternary planes, as docs/contract.md ("Quantizer") says.

A ``balanced`` code of N digits has one scale s. Digits are found from the most significant plane
down: the remainder is compared with half the plane's weight 3**c s, and the digit times the weight
is subtracted. This rounds to the nearest code point s * k, |k| <= (3**N - 1) / 2. Dropping the k
lowest planes leaves the nearest code of N - k digits under 3**k s.

A ``residual`` code of N digits has N scales. Each plane rounds the remainder of the planes before
it to -s_c, 0 or s_c. This is the code of the KVTQ paper.

A scale is chosen per vector (or per remainder), then *encoded*. Digits are computed against the
encoded scale, so a reader multiplies by the same scale that the writer rounded with. Negating a
vector negates its digits. A vector of zeros gets the smallest scale and digits of zero. A vector
too large for the largest scale saturates its digits.

Hardware computes the scale choice ``absmean`` for both codes, and ``max`` for residual codes only.
The other choices, ``max`` for balanced codes (which divides by 3**N) and ``lsq`` (which tries
several scales), are for comparison::

    >>> from golden.dequantizer import dequantize
    >>> from kvtq_hw.contract.config import load_config
    >>> config = load_config("tiny")
    >>> x = torch.tensor([[900, -300, 40, 0, 510, -880, 20, 130]])
    >>> planes = quantize(config, x, "balanced", 2, "absmean")
    >>> planes.digits[0]
    tensor([[ 1, -1,  0,  0, -1, -1,  0,  1],
            [ 1,  0,  0,  0,  1, -1,  0,  0]], dtype=torch.int8)
    >>> dequantize(config, planes)
    tensor([[ 960, -240,    0,    0,  480, -960,    0,  240]])
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.feedback import Feedback
from golden.fixed_point import rshift_round, saturate
from golden.planes import Planes
from golden.scale import decode_scale, encode_scale
from kvtq_hw.contract.codes import SCALE_CHOICES, CodeKind, ScaleChoice
from kvtq_hw.contract.config import EngineConfig

__all__ = [
    "ABSMEAN_BITS",
    "BALANCED_RATIOS",
    "FEEDBACK_RATIOS",
    "RESIDUAL_RATIOS",
    "absmean_constant",
    "absmean_shift",
    "balanced_digits",
    "quantize",
]

#: Fraction bits of an absmean constant.
ABSMEAN_BITS = 8

#: Ratio of scale to mean absolute value with the least squared error on Gaussian vectors, which
#: rotated vectors resemble, for codes of 1..5 digits. The optimum is flat. A test recomputes them.
BALANCED_RATIOS = (1.52, 0.67, 0.268, 0.105, 0.041)
#: The same ratios for codes rounded with feedback, chosen by model quality (docs/short-code.md):
#: a code of one digit is best when more of its digits are zero.
FEEDBACK_RATIOS = {
    "key": (2.0, 0.7, 0.28, 0.105, 0.041),
    "value": (2.1, 0.7, 0.28, 0.105, 0.041),
}
#: The same ratios for each plane of a residual code, relative to the remainder of the planes
#: before. The fourth plane is best spent on the few elements that the first three have clipped.
RESIDUAL_RATIOS = (1.53, 1.37, 1.57, 8.5, 1.42)
# Scales tried by `lsq` beside the one that clips nothing: tenths of largest element / largest code.
_CLIP_TENTHS = (10, 9, 8, 7, 6, 5, 4, 3)


def absmean_constant(config: EngineConfig, ratio: float) -> int:
    """Return the integer c of ``scale = c * sum |z| / 2**(ceil(log2 D) + 8)`` nearest to `ratio`.

    The ratio is scale / mean absolute value. Where D is no power of two, c corrects for the shift
    that replaces the division by D.
    """
    return round(ratio * (1 << absmean_shift(config)) / config.head_dim)


def absmean_shift(config: EngineConfig) -> int:
    """Return the fraction bits of the product of an absmean constant and a sum of magnitudes."""
    return ABSMEAN_BITS + (config.head_dim - 1).bit_length()


def quantize(
    config: EngineConfig,
    x: Tensor,
    kind: CodeKind,
    digits: int,
    scale: ScaleChoice,
    *,
    ratio: float | None = None,
    feedback: Feedback | None = None,
) -> Planes:
    """Quantize integer vectors to ternary planes.

    Parameters
    ----------
    x : int64 [..., T, D], at most ``2 * conditioned_max`` in magnitude
    digits : number of planes N, 1..max_planes
    scale : ``max`` takes the smallest scale that clips nothing or, for a residual code, the
        paper's scale, the largest element; ``absmean`` takes a constant times the mean absolute
        value; ``lsq`` takes the scale with the least squared error among several candidates
    ratio : ratio of the ``absmean`` scale of a balanced code to the mean absolute value; that of
        `BALANCED_RATIOS` when None
    feedback : feedback matrices of the KV heads (axis -3 of x) for a balanced code

    Returns
    -------
    Planes [..., T, N, D]

    Raises
    ------
    TypeError
        When the vectors are not int64.
    ValueError
        For an unknown kind or scale choice, digits outside 1..max_planes, elements that are too
        large, or feedback for a residual code.
    """
    if kind not in ("balanced", "residual"):
        raise ValueError(f"kind: {kind!r} is unknown; allowed are balanced, residual")
    if not 1 <= digits <= config.max_planes:
        raise ValueError(f"digits: {digits} is not allowed; must be 1..{config.max_planes}")
    if scale not in SCALE_CHOICES:
        raise ValueError(f"scale: {scale!r} is unknown; allowed are {', '.join(SCALE_CHOICES)}")
    if x.dtype != torch.int64:
        raise TypeError(f"x is {x.dtype}, must be torch.int64")
    limit = 2 * config.conditioned_max
    if x.numel() and int(x.abs().max()) > limit:
        raise ValueError(f"x holds {int(x.abs().max())}; allowed are magnitudes up to {limit}")
    if kind == "balanced":
        ratio = BALANCED_RATIOS[digits - 1] if ratio is None else ratio
        fraction, exponent = _choose_scale(config, x, digits, scale, ratio, clip_free=True)
        absent = [torch.zeros_like(fraction)] * (digits - 1)
        unit = torch.zeros(*x.shape[:-1], digits, dtype=torch.bool, device=x.device)
        unit[..., 0] = True
        step = decode_scale(config, fraction, exponent)
        if feedback is None:
            trits = _compare_and_subtract(x, step, digits)
        else:
            trits = _round_with_feedback(config, x, step, digits, feedback)
        return Planes(
            trits,
            unit,
            torch.stack([fraction, *absent], -1),
            torch.stack([exponent, *absent], -1),
        )
    if feedback is not None:
        raise ValueError("feedback: a residual code has none; must be None")
    planes, fractions, exponents = [], [], []
    rest = x
    for plane in range(digits):
        ratio = RESIDUAL_RATIOS[plane]
        fraction, exponent = _choose_scale(config, rest, 1, scale, ratio, clip_free=False)
        step = decode_scale(config, fraction, exponent)
        trit = _compare_and_subtract(rest, step, 1)[..., 0, :]
        rest = rest - step[..., None] * trit
        planes.append(trit)
        fractions.append(fraction)
        exponents.append(exponent)
    unit = torch.ones(*x.shape[:-1], digits, dtype=torch.bool, device=x.device)
    return Planes(
        torch.stack(planes, -2), unit, torch.stack(fractions, -1), torch.stack(exponents, -1)
    )


def balanced_digits(code: Tensor, digits: int) -> Tensor:
    """Split integers [..., D] in +-(3**N - 1) / 2 into balanced ternary digits int8 [..., N, D]."""
    planes = []
    for _ in range(digits):
        trit = (code + 1).remainder(3) - 1
        planes.append(trit)
        code = (code - trit) // 3
    return torch.stack(planes, -2).to(torch.int8)


def _choose_scale(
    config: EngineConfig,
    x: Tensor,
    digits: int,
    choice: ScaleChoice,
    absmean_ratio: float,
    *,
    clip_free: bool,
) -> tuple[Tensor, Tensor]:
    """Return the encoded scale (fraction, exponent), int64 [...], of each vector x [..., D].

    With `clip_free`, ``max`` is the smallest scale under which no element is more than half a step
    from a code point. Rounding the scale to nearest instead would clip up to a third off the
    largest elements, which from four digits on costs more than all other rounding.
    """
    if choice == "absmean":
        total = x.abs().sum(-1) * absmean_constant(config, absmean_ratio)
        return encode_scale(config, total, absmean_shift(config))
    largest = x.abs().amax(-1)
    code_max = (3**digits - 1) // 2
    # largest / (code_max + 1/2); scales are integers, so rounding up twice changes nothing
    free = encode_scale(config, -(-2 * largest // 3**digits), round_up=True)
    if choice == "max":
        return free if clip_free else encode_scale(config, largest)
    tenths = torch.tensor(_CLIP_TENTHS, device=x.device)
    guard = 8  # fraction bits of a candidate before it is encoded
    tried = encode_scale(config, (largest[..., None] * tenths << guard) // (10 * code_max), guard)
    fraction, exponent = (
        torch.cat((some, one[..., None]), -1) for some, one in zip(tried, free, strict=True)
    )
    steps = decode_scale(config, fraction, exponent)
    errors = torch.stack([_squared_error(x, step, digits) for step in steps.unbind(-1)], -1)
    best = errors.argmin(-1, keepdim=True)
    return fraction.gather(-1, best)[..., 0], exponent.gather(-1, best)[..., 0]


def _compare_and_subtract(x: Tensor, step: Tensor, digits: int) -> Tensor:
    """Compute the digits of x [..., D] under a step s [...]: int8 [..., N, D], unit plane first.

    The remainder r starts as x. From the most significant digit down, the digit is +1 where
    2r > 3**c s and -1 where 2r < -3**c s, then ``r -= digit * 3**c s``.
    """
    rest, planes = x, []
    for position in reversed(range(digits)):
        weight = 3**position * step[..., None]
        trit = (2 * rest > weight).long() - (2 * rest < -weight).long()
        rest = rest - trit * weight
        planes.append(trit.to(torch.int8))
    return torch.stack(planes[::-1], -2)


def _round_with_feedback(
    config: EngineConfig, x: Tensor, step: Tensor, digits: int, feedback: Feedback
) -> Tensor:
    """Round x [..., heads, T, D] under steps [..., heads, T] to int8 digits [..., heads, T, N, D].

    Elements are rounded one after the other. Element k rounds ``sat(x_k + a_k)``. Its error
    ``err_k = rshift_round(sat(x_k - s * code_k), shift_k)`` is then fed to all later elements j:
    ``a_j = sat(a_j + factors_kj err_k)``.
    """
    elements = x.movedim(-1, 0).contiguous()
    weights = 3 ** torch.arange(digits, device=x.device)
    factors, shift = feedback.factors.to(x.device), feedback.shift.to(x.device)
    rows = factors.long()[..., None].movedim(-3, 0)  # [D, heads, D, 1]
    shift = shift[..., None].movedim(-2, 0)  # [D, heads, 1]
    sums = torch.zeros_like(x).movedim(-1, -2).contiguous()  # [..., heads, D, T]
    planes = []
    for k, element in enumerate(elements):
        rounded = saturate(element + sums[..., k, :], config.conditioned_bits + 1)
        digit = _compare_and_subtract(rounded[..., None], step, digits)[..., 0]  # [..., T, N]
        planes.append(digit)
        error = saturate(element - step * (digit * weights).sum(-1), config.conditioned_bits)
        later = sums[..., k + 1 :, :]
        later += rshift_round(error, shift[k])[..., None, :] * rows[k][:, k + 1 :]
        later.copy_(saturate(later, config.conditioned_bits + 1))
    return torch.stack(planes, -1)


def _squared_error(x: Tensor, step: Tensor, digits: int) -> Tensor:
    """Return the sum of squared errors [...] of each vector x [..., D] rounded with its step."""
    weights = 3 ** torch.arange(digits, device=x.device)
    code = (_compare_and_subtract(x, step, digits) * weights[:, None]).sum(-2)
    return (x - step[..., None] * code).square().sum(-1)
