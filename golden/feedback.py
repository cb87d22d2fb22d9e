"""Rounding with feedback: errors of earlier elements are added to an element before rounding.

Feedback does not minimize the error e of a vector, but its effect e' H e. For a key this is the
error of the scores, with H = E[q q'] over the queries that read the key. For a value it is the
error behind the output projection, with H = W_o' W_o. With H = (U + I) D (U + I)', U strictly upper
triangular and D diagonal, e' H e is a weighted sum of squares of ``e_k + sum_{j<k} e_j U_jk``.
Adding the second term to element k before rounding makes each square as small as rounding can
(LDLQ of QuIP, arXiv 2307.13304, where it rounds weights).

Hardware needs no multiplier for this: calibration rounds each row of U to numbers of two ternary
digits under one power of two. An element's error is shifted once. Then, digit by digit, it is added
to, subtracted from or left out of the sums of all later elements, so the array that reads the cache
can also write it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "FACTOR_MAX",
    "FEEDBACK_DIGITS",
    "MAX_SHIFT",
    "Feedback",
    "feedback_from_hessian",
    "triangular_factor",
]

#: Ternary digits of an element of U (docs/short-code.md compares one, two and no rounding).
FEEDBACK_DIGITS = 2
FACTOR_MAX = (3**FEEDBACK_DIGITS - 1) // 2

#: Largest shift of a row; a row whose best shift is larger is as good as zero.
MAX_SHIFT = 7


@dataclass(frozen=True)
class Feedback:
    """Feedback matrices of a layer's KV heads: ``U_jk ~ 2**-shift_j * factors_jk``.

    factors : int8 [kv_heads, D, D], strictly upper triangular, in -4..4
    shift : int64 [kv_heads, D], 0..7
    """

    factors: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        heads, dim, _ = self.factors.shape
        if self.shift.shape != (heads, dim):
            raise ValueError(
                f"shift has shape {tuple(self.shift.shape)}, factors {tuple(self.factors.shape)} "
                f"need {(heads, dim)}"
            )
        if self.factors.tril().any():
            raise ValueError("factors are not strictly upper triangular")


def triangular_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return U of ``H + damping * mean(diag H) * I = (U + I) D (U + I)'``, float64 [..., D, D]."""
    hessian = hessian.double()
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    damped = hessian + (damping * mean).clamp(min=1e-30) * identity
    lower = torch.linalg.cholesky(damped.flip(-1, -2))
    unit = lower / lower.diagonal(dim1=-2, dim2=-1)[..., None, :]
    return unit.flip(-1, -2) - identity


def feedback_from_hessian(hessian: Tensor, damping: float) -> Feedback:
    """Make feedback matrices from H [kv_heads, D, D]; each row gets the best power of two.

    The best power of two gives the least squared error of the row.
    """
    factor = triangular_factor(hessian, damping)
    shifts = torch.arange(MAX_SHIFT + 1, device=factor.device)
    scales = torch.ldexp(torch.ones_like(shifts, dtype=factor.dtype), -shifts)
    candidates = (factor[..., None] / scales).round().clamp(-FACTOR_MAX, FACTOR_MAX)
    error = (candidates * scales - factor[..., None]).square().sum(-2)  # [heads, row, shift]
    shift = error.argmin(-1)
    chosen = shift[..., :, None, None].expand(*factor.shape, 1)
    return Feedback(candidates.gather(-1, chosen)[..., 0].to(torch.int8), shift)
