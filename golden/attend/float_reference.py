"""Float reference: the attention that the integer engine approximates, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attend"]


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None = None,
    recent: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """``softmax(q k' / sqrt(D)) v`` of I queries a head over T tokens.

    Parameters
    ----------
    queries : float64 [..., G, I, D]
    keys, values : float64 [..., T, D], dequantized planes
    visible : bool [..., I, T]; all tokens when None. A row without any token gives zeros.
    recent : keys and values float64 [..., R, D] of the newest R tokens in another version, and
        which query sees those, bool [..., I, R]

    Returns
    -------
    float64 [..., G, I, D]
    """
    scores = queries @ keys[..., None, :, :].mT / math.sqrt(keys.shape[-1])
    if recent is not None:
        recent_keys, recent_values, seen = recent
        newest, seen = slice(keys.shape[-2] - recent_keys.shape[-2], None), seen[..., None, :, :]
        other = queries @ recent_keys[..., None, :, :].mT / math.sqrt(keys.shape[-1])
        scores[..., newest] = torch.where(seen, other, scores[..., newest])
    if visible is not None:
        scores = scores.masked_fill(~visible[..., None, :, :], -math.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)  # a row of -inf is NaN
    if recent is None:
        return weights @ values[..., None, :, :]
    apart = weights[..., newest] * seen
    weights[..., newest] = weights[..., newest] * ~seen
    return weights @ values[..., None, :, :] + apart @ recent_values[..., None, :, :]
