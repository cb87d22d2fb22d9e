"""Single-precision attention over tokens that may be stored in two versions.

Formats with a window of recent tokens hold a token first in one version and later in another. In a
forward pass of several queries an early query must see a token as it was for it, and a later one as
it has become. Both versions are attended to, each by the queries that see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.attend.packed_attention import attend_one
from golden.cache.attention_job import AttentionJob
from golden.dequantizer import dequantize

__all__ = ["SinglePrecisionBackend", "Versions", "attend"]


@dataclass(frozen=True)
class Versions:
    """Keys or values of T tokens, M of them in a second version.

    vectors : float32 [batch, kv_heads, T, D]
    other : float32 [batch, kv_heads, M, D], the second version of the tokens from `start` on
    start : index of the first of them
    sees_other : bool [I, M], the queries that see a token's second version instead of the first
    """

    vectors: Tensor
    other: Tensor
    start: int
    sees_other: Tensor

    @property
    def span(self) -> slice:
        """The tokens with two versions."""
        return slice(self.start, self.start + self.other.shape[-2])


def attend(queries: Tensor, keys: Versions, values: Versions, visible: Tensor | None) -> Tensor:
    """Softmax attention in float32.

    Parameters
    ----------
    queries : float32 [batch, kv_heads, G, I, D], with the factor on the scores
    visible : bool [batch, 1, I, T]; all tokens when None. A row without any token gives zeros.

    Returns
    -------
    float32 [batch, kv_heads, G, I, D]
    """
    group, count = queries.shape[2:4]
    flat = queries.flatten(2, 3)
    scores = (flat @ keys.vectors.mT).unflatten(2, (group, count))
    if keys.other.shape[-2]:
        other = (flat @ keys.other.mT).unflatten(2, (group, count))
        scores[..., keys.span] = torch.where(keys.sees_other, other, scores[..., keys.span])
    if visible is not None:
        scores.masked_fill_(~visible[:, :, None], -math.inf)
    weights = torch.softmax(scores, -1)
    if visible is not None and not visible.any(-1).all():
        weights = weights.nan_to_num_(0.0)  # a row of -inf is NaN
    if not values.other.shape[-2]:
        outputs = weights.flatten(2, 3) @ values.vectors
    else:
        apart = weights[..., values.span] * values.sees_other
        weights[..., values.span] -= apart
        outputs = weights.flatten(2, 3) @ values.vectors + apart.flatten(2, 3) @ values.other
    return outputs.unflatten(2, (group, count))


class SinglePrecisionBackend:
    """Float32 attention over the dequantized planes: the float reference at half its cost."""

    def attend(self, job: AttentionJob) -> Tensor:
        """Float attention over the layer's planes, float64 [batch, kv_heads, G, I, D]."""
        rotated_back = job.cache.conditioning.rotated_back
        on_cpu = job.real_queries.device.type == "cpu"
        if on_cpu and job.recent is None and job.real_queries.shape[-2] == 1:
            return rotated_back(attend_one(job))
        config = job.cache.config
        keys, values = (
            dequantize(config, planes).float()
            for planes in (job.cache.keys.planes(), job.cache.values.planes())
        )
        queries = (job.real_queries / math.sqrt(config.head_dim)).float()
        recent = job.recent
        if recent is None:
            seen = torch.zeros(queries.shape[-2], 0, dtype=torch.bool, device=queries.device)
            other_keys, other_values = keys[:, :, :0], values[:, :, :0]
        else:
            seen = recent.seen
            other_keys, other_values = (
                dequantize(config, planes).float() for planes in (recent.keys, recent.values)
            )
        start = keys.shape[-2] - other_keys.shape[-2]
        outputs = attend(
            queries,
            Versions(keys, other_keys, start, seen),
            Versions(values, other_values, start, seen),
            job.visible,
        )
        return rotated_back(outputs.double())
