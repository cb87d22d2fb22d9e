"""Float reference: the attention that the integer engine approximates, in float64."""

from __future__ import annotations

import math

from torch import Tensor

from golden.learned_sinks import softmax
from golden.second_version import SecondVersion

__all__ = ["attend"]


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None = None,
    other_keys: SecondVersion[Tensor] | None = None,
    other_values: SecondVersion[Tensor] | None = None,
    *,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Compute ``softmax(q k' / sqrt(D)) v`` of I queries per head over T tokens.

    Parameters
    ----------
    queries : float64 [..., G, I, D]
    keys, values : float64 [..., T, D], dequantized planes
    visible : bool [..., I, T]; all tokens when None. A query that sees no token gets zeros.
    other_keys, other_values : second versions of some tokens, float64 [..., M, D], or None
    sink_logits : learned sinks [..., G], natural logarithms, or None

    Returns
    -------
    float64 [..., G, I, D]
    """

    def scores_with(keys: Tensor) -> Tensor:
        return queries @ keys[..., None, :, :].mT / math.sqrt(keys.shape[-1])

    scores = scores_with(keys)
    if other_keys is not None:
        other_keys.replace(scores, scores_with(other_keys.vectors))
    if visible is not None:
        scores = scores.masked_fill(~visible[..., None, :, :], -math.inf)
    weights = softmax(scores, sink_logits).nan_to_num(0.0)  # a row of -inf is NaN
    if other_values is None:
        return weights @ values[..., None, :, :]
    apart = other_values.take(weights)
    return weights @ values[..., None, :, :] + apart @ other_values.vectors[..., None, :, :]
