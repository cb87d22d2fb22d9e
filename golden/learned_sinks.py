"""Learned sinks: logits of the query heads themselves in the denominator of the softmax.

A model with learned sinks (GPT-OSS) has one more logit per query head, beside the scores of the
tokens, to which no value belongs. The online softmax starts from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtq_hw.contract.config import EngineConfig

__all__ = ["LearnedSinks", "quantize_learned_sinks"]


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
