"""Golden plane scaler: multiplies plane sums of a key by its scales, giving a log2-domain score."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.fixed_point import rshift_round, saturate
from golden.planes import Planes
from kvtq_hw.contract.config import EngineConfig

__all__ = ["plane_scaler"]


def plane_scaler(
    config: EngineConfig, sums: Tensor, keys: Planes, query_exponent: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale plane sums run by run, then round and saturate to fixed-point scores.

    A run with plane sums s_c contributes ``sat(round(sum_c 3**c s_c * (2**M + f) * 2**-r))`` with
    ``r = query_exponent - e``. The score is the saturated sum of the contributions.

    Parameters
    ----------
    sums : int64 [..., G, I, T, P] from `golden.key_lanes`
    keys : planes of the keys with their scales, batch axes [...]
    query_exponent : int64 [..., G, I]

    Returns
    -------
    scores : int64 [..., G, I, T], F fraction bits
    saturated : bool [..., G, I, T], true where a contribution or the score was clamped
    """
    runs = keys.run_index()[..., None, None, :, :].expand(sums.shape)
    weighted = sums * keys.run_weight()[..., None, None, :, :]
    run_sums = torch.zeros_like(sums).scatter_add_(-1, runs, weighted)

    # move scales from the unit planes to the index of their runs; absent runs stay zero
    def by_run(field: Tensor) -> Tensor:
        moved = torch.zeros_like(field)
        moved.scatter_add_(-1, keys.run_index(), torch.where(keys.unit, field, 0))
        return moved[..., None, None, :, :]

    mantissa = by_run((1 << config.scale_fraction_bits) + keys.fraction)
    product = run_sums * mantissa
    shift = query_exponent[..., None, None] - by_run(keys.exponent)
    right = rshift_round(product, shift.clamp(0, config.product_bits + 1))
    # beyond score_bits + 1 bits any left shift saturates: clamp first so that int64 is enough
    left = saturate(product, config.score_bits + 1) << (-shift).clamp(0, config.score_bits)
    exact = torch.where(shift >= 0, right, left)
    contribution = saturate(exact, config.score_bits)
    total = contribution.sum(-1)
    scores = saturate(total, config.score_bits)
    return scores, (exact != contribution).any(-1) | (total != scores)
