"""Float reference: the attention that the integer engine approximates, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attend"]


def attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
    """``softmax(q k' / sqrt(D)) v`` of I queries a head over T tokens.

    Parameters
    ----------
    queries : float64 [..., G, I, D]
    keys, values : float64 [..., T, D], dequantized planes
    visible : bool [..., I, T]; all tokens when None. A row without any token gives zeros.

    Returns
    -------
    float64 [..., G, I, D]
    """
    scores = queries @ keys[..., None, :, :].mT / math.sqrt(keys.shape[-1])
    if visible is not None:
        scores = scores.masked_fill(~visible[..., None, :, :], -math.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)  # a row of -inf is NaN
    return weights @ values[..., None, :, :]
