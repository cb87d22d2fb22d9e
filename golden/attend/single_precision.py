"""Single-precision attention: computes what the float reference computes, at half the cost."""

from __future__ import annotations

import math

from torch import Tensor

from golden.attend.packed_attention import attend_one
from golden.cache.attention_job import AttentionJob
from golden.dequantizer import dequantize
from golden.learned_sinks import softmax
from golden.planes import Planes
from golden.second_version import SecondVersion

__all__ = ["SinglePrecisionBackend", "attend"]


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
    """Compute softmax attention in float32.

    Parameters
    ----------
    queries : float32 [batch, kv_heads, G, I, D], multiplied by the factor on the scores
    keys, values : float32 [batch, kv_heads, T, D]
    visible : bool [batch, 1, I, T]; all tokens when None. A query that sees no token gets zeros.
    other_keys, other_values : second versions of some tokens, float32 [batch, kv_heads, M, D]
    sink_logits : learned sinks [kv_heads, G], natural logarithms, or None

    Returns
    -------
    float32 [batch, kv_heads, G, I, D]
    """
    group, count = queries.shape[2:4]
    flat = queries.flatten(2, 3)
    scores = (flat @ keys.mT).unflatten(2, (group, count))
    if other_keys is not None:
        other_scores = (flat @ other_keys.vectors.mT).unflatten(2, (group, count))
        other_keys.replace(scores, other_scores)
    if visible is not None:
        scores.masked_fill_(~visible[:, :, None], -math.inf)
    weights = softmax(scores, sink_logits)
    if visible is not None and not visible.any(-1).all():
        weights = weights.nan_to_num_(0.0)  # a row of -inf is NaN
    if other_values is None:
        outputs = weights.flatten(2, 3) @ values
    else:
        apart = other_values.take(weights).flatten(2, 3)
        outputs = weights.flatten(2, 3) @ values + apart @ other_values.vectors
    return outputs.unflatten(2, (group, count))


class SinglePrecisionBackend:
    """Computes float32 attention over the dequantized planes at half the float reference's cost."""

    def attend(self, job: AttentionJob) -> Tensor:
        """Compute float32 attention over the layer's planes: float64 [batch, kv_heads, G, I, D]."""
        rotated_back = job.cache.conditioning.rotated_back
        # the compiled loop reads whole parts of the cache: it knows no anchors
        packed = job.real_queries.device.type == "cpu" and job.cache.keys.in_tier is None
        if packed and job.recent is None and job.real_queries.shape[-2] == 1:
            return rotated_back(attend_one(job))
        config = job.cache.config

        def real(planes: Planes) -> Tensor:
            return dequantize(config, planes).float()

        outputs = attend(
            (job.real_queries / math.sqrt(config.head_dim)).float(),
            real(job.cache.keys.planes()),
            real(job.cache.values.planes()),
            job.visible,
            *(version.map(real) for version in job.recent or ()),
            sink_logits=job.sink_logits,
        )
        return rotated_back(outputs.double())
