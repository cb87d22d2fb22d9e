"""Golden normalizer: divides accumulators by the softmax denominator."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.fixed_point import rshift_round, saturate
from kvtq_hw.contract.config import EngineConfig

__all__ = ["normalizer"]


def normalizer(config: EngineConfig, accumulators: Tensor, sums: Tensor) -> Tensor:
    """Divide accumulators by softmax denominators.

    Computes ``sat(round(acc * floor(2**(R+k) / sum) * 2**-(R + k - Fo)))``, k = floor(log2(sum)).

    Parameters
    ----------
    accumulators : int64 [..., D]
    sums : int64 [...], softmax denominators, at least 1

    Returns
    -------
    int64 [..., D], with Fo = output_fraction_bits fraction bits relative to the job's value
    exponent
    """
    powers = torch.arange(1, config.sum_of_weights_bits + 1, device=sums.device)
    magnitude = (sums[..., None] >> powers).ne(0).sum(-1)
    reciprocal = (torch.ones_like(sums) << (config.reciprocal_bits + magnitude)) // sums
    shift = config.reciprocal_bits + magnitude - config.output_fraction_bits
    exact = rshift_round(accumulators * reciprocal[..., None], shift[..., None])
    return saturate(exact, config.output_bits)
