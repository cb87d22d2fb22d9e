"""Golden online softmax: base 2, over blocks of tokens, with an integer running maximum.

The maximum rises with the scores. It also rises by one where the sum of weights has reached a
limit, so the sum and the weighted accumulators stay bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from golden.fixed_point import rshift_round
from kvtq_hw.contract.config import EngineConfig

__all__ = ["BlockWeights", "exp2_table", "online_softmax"]

_ABSENT = -(1 << 40)  # below any score: the maximum of a block without visible tokens


@dataclass(frozen=True)
class BlockWeights:
    """Weights of N blocks of B tokens, for I queries of G heads.

    weights : int64 [..., G, I, N, B], W fraction bits, relative to the maximum after their block
    shifts : int64 [..., G, I, N], right shift of the accumulators before each block; 0 for block 0
    sums : int64 [..., G, I], the softmax denominator
    """

    weights: Tensor
    shifts: Tensor
    sums: Tensor


def exp2_table(config: EngineConfig) -> Tensor:
    """Return the table of 2**(W - f / 2**F), rounded half up, for f = 0 .. 2**F - 1."""
    size = 1 << config.score_fraction_bits
    one = 1 << config.weight_bits
    return torch.tensor([int(one * 2 ** (-f / size) + 0.5) for f in range(size)])


def online_softmax(config: EngineConfig, scores: Tensor, visible: Tensor) -> BlockWeights:
    """Compute softmax weights as the hardware does: block by block, in token order.

    Parameters
    ----------
    scores : int64 [..., G, I, T], log2 domain, F fraction bits
    visible : bool [..., I, T]; each row true for a prefix of the tokens
    """
    fraction = config.score_fraction_bits
    padding = -scores.shape[-1] % config.block
    seen = torch.nn.functional.pad(visible, (0, padding)).unflatten(-1, (-1, config.block))
    seen = seen[..., None, :, :, :]
    blocks = torch.nn.functional.pad(scores, (0, padding)).unflatten(-1, (-1, config.block))

    largest = torch.where(seen, blocks, _ABSENT).amax(-1)
    ceilings = -((-largest) >> fraction)
    table = exp2_table(config).to(scores.device)
    sums = torch.zeros_like(ceilings[..., 0])
    maximum = ceilings[..., 0]
    weights, shifts = torch.zeros_like(blocks), torch.zeros_like(ceilings)
    for block in range(blocks.shape[-2]):
        here = seen[..., block, :]
        full = (sums >= config.sum_limit) & here.any(-1)  # a query has no more blocks than tokens
        raised = torch.maximum(maximum + full, ceilings[..., block])
        shifts[..., block] = (raised - maximum).clamp(max=config.accumulator_bits)
        maximum = raised
        below = torch.where(here, (maximum[..., None] << fraction) - blocks[..., block, :], 0)
        # a weight of one (2**W) shifted by more than W + 1 bits rounds to zero
        shift = (below >> fraction).clamp(max=config.weight_bits + 2)
        weights[..., block, :] = rshift_round(table[below & ((1 << fraction) - 1)], shift) * here
        sums = (sums >> shifts[..., block]) + weights[..., block, :].sum(-1)
    return BlockWeights(weights, shifts, sums)
