"""Weights of zero: values that add nothing, since their weight is zero for all query heads.

A softmax weight has a fixed number of fraction bits, and so has its product with the value's scale.
Far below the maximum both round to zero. The value lanes rest in the slices of such a value.
Hardware could also leave these slices out, or not read the value at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from golden.cache.attention_job import AttentionBackend, AttentionJob
from golden.engine import Attention
from golden.key_lanes import key_lanes
from golden.learned_sinks import LearnedSinks
from golden.online_softmax import online_softmax
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from golden.weight_scaler import weight_scaler
from kvtq_hw.contract.config import EngineConfig

__all__ = ["CountingBackend", "WeightlessValues", "weightless_values"]


@dataclass(frozen=True)
class WeightlessValues:
    """Values of one KV head that add nothing to an attention, in the engine's order.

    before : bool [T], the softmax weight is zero for all query heads
    after : bool [T], the weight times the value's scale is; true where `before` is
    depths : int64 [T], planes of each value
    """

    before: torch.Tensor
    after: torch.Tensor
    depths: torch.Tensor


def weightless_values(
    config: EngineConfig,
    queries: Queries,
    keys: Planes,
    values: Planes,
    depths: torch.Tensor,
    value_exponent: torch.Tensor,
    learned_sinks: LearnedSinks | None,
) -> WeightlessValues:
    """Find the values whose weight is zero for one query of each of G heads.

    Parameters
    ----------
    queries : values [G, 1, D]
    keys, values : Planes [T, P, D]; P may differ between keys and values
    depths : int64 [T], planes of each value
    value_exponent : int64 [1], the job's
    learned_sinks : [G], or None
    """
    keys, values = keys.merged(), values.merged()
    sums = key_lanes(keys.digits, queries.values)
    scores, _ = plane_scaler(config, sums, keys, queries.exponent)
    visible = torch.ones(1, keys.tokens, dtype=torch.bool)
    softmax = online_softmax(config, scores, visible, learned_sinks)
    weights = softmax.weights[0].flatten(-2)[..., : keys.tokens]  # [G, 1, T]
    scaled = weight_scaler(config, weights, values, value_exponent)  # [G, 1, T, runs]
    return WeightlessValues((weights == 0).all(0)[0], (scaled == 0).all(-1).all(0)[0], depths)


@dataclass
class CountingBackend:
    """Computes attention with another backend, and looks for weightless values in decode steps.

    found : one entry per KV head of each decode step, in the order of computation
    """

    backend: AttentionBackend
    found: list[WeightlessValues] = field(default_factory=list)

    def attend(self, job: AttentionJob) -> Attention | torch.Tensor:
        """Compute the job; if it is a decode step, find the weightless values of each KV head."""
        if job.is_decode_step:
            self.found += _of_heads(job)
        return self.backend.attend(job)


def _of_heads(job: AttentionJob) -> list[WeightlessValues]:
    cache, sinks = job.cache, job.learned_sinks
    (keys, _), (values, depths) = (
        view.in_order(cache.code.tiers) for view in (cache.keys, cache.values)
    )

    def of(head: int) -> WeightlessValues:
        return weightless_values(
            cache.config,
            Queries(job.queries.values[0, head], job.queries.exponent[0, head]),
            keys.map_tokens(lambda x, axis: x[0, head]),
            values.map_tokens(lambda x, axis: x[0, head]),
            depths[0, head],
            job.value_exponent[0, head],
            None if sinks is None else sinks.of_kv_head(head),
        )

    return [of(head) for head in range(cache.kv_heads)]
