"""Learned sinks: logits of the query heads themselves in the denominator of the softmax.

A model with learned sinks (GPT-OSS) has one more logit per query head, beside the scores of the
tokens, to which no value belongs. The online softmax starts from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtq_hw.contract.config import EngineConfig

__all__ = ["LearnedSinks", "no_learned_sinks", "quantize_learned_sinks", "softmax"]


@dataclass(frozen=True)
class LearnedSinks:
    """Learned sinks of G query heads: a head's weight is 2**(maximum - W) * weight.

    maximum : int64 [..., G], the contract's `sink_maximum`
    weight : int64 [..., G], the contract's `sink_weight`; a head with a weight below 2**(W-1) has
        no learned sink
    """

    maximum: Tensor
    weight: Tensor

    def present(self, config: EngineConfig) -> Tensor:
        """Return which heads have a learned sink, bool [..., G]."""
        return self.weight >= 1 << (config.weight_bits - 1)

    def array(self) -> NDArray[np.int64]:
        """Return maxima and weights as one array, int64 [2, ..., G]."""
        return torch.stack([self.maximum, self.weight]).numpy()

    def of_kv_head(self, head: int) -> LearnedSinks:
        """Return the learned sinks [G] of one KV head's query heads, from those [kv_heads, G]."""
        return LearnedSinks(self.maximum[head], self.weight[head])


def no_learned_sinks(config: EngineConfig) -> LearnedSinks:
    """Return what a job gives for the query heads [G] of a model without learned sinks."""
    none = torch.zeros(config.query_group, dtype=torch.int64)
    return LearnedSinks(none, none.clone())


def quantize_learned_sinks(config: EngineConfig, logits: Tensor) -> LearnedSinks:
    """Round learned sinks to maxima and weights, for all heads of a layer.

    With ``s = logit * log2(e)``, clamped to the range of ``ceil(score / 2**F)``, the maximum is
    ``ceil(s)`` and the weight ``floor(2**(W + s - ceil(s)) + 1/2)``. The host does this once per
    layer.

    Parameters
    ----------
    logits : float [..., G], natural logarithms, as the model adds them to its scaled scores

    Raises
    ------
    ValueError
        When a logit is not a number.
    """
    if logits.isnan().any():
        raise ValueError("learned sinks hold a logit that is not a number")
    limit = config.ceiling_max
    octaves = (logits.double() * math.log2(math.e)).clamp(-limit, limit)
    maximum = octaves.ceil()
    weight = torch.exp2(config.weight_bits + octaves - maximum)
    return LearnedSinks(maximum.long(), (weight + 0.5).floor().long())


def softmax(scores: Tensor, logits: Tensor | None) -> Tensor:
    """Compute the softmax of scores over tokens, with learned sinks in the denominator.

    Parameters
    ----------
    scores : float [..., G, I, T]
    logits : float [..., G], natural logarithms, or None

    Returns
    -------
    Weights [..., G, I, T]; without learned sinks, NaN where all scores are minus infinity
    """
    if logits is None:
        return torch.softmax(scores, -1)
    sinks = logits[..., None, None].to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]
