"""Golden online softmax: base 2, over blocks of tokens, with an integer running maximum.

The maximum rises with the scores. It also rises by one where the sum of weights has reached a
limit, so the sum and the weighted accumulators stay bounded. A learned sink is where both start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.fixed_point import rshift_round
from golden.learned_sinks import LearnedSinks
from kvtq_hw.contract.config import EngineConfig

__all__ = ["BlockScores", "BlockWeights", "exp2_table", "online_softmax", "softmax_of_blocks"]

_ABSENT = -(1 << 40)  # below any score: the maximum of a block without visible tokens


@dataclass(frozen=True)
class BlockScores:
    """Scores of n consecutive blocks, each of up to b tokens.

    first : number of the first block
    scores : int64 [..., G, I, n, b], log2 domain, F fraction bits
    visible : bool [..., I, n, b]
    """

    first: int
    scores: Tensor
    visible: Tensor

    @property
    def end(self) -> int:
        """Number of the block behind the last."""
        return self.first + self.scores.shape[-2]


@dataclass(frozen=True)
class BlockWeights:
    """Weights of N blocks of tokens, for I queries of G heads.

    weights : int64 [..., G, I, n, b] for each `BlockScores`, W fraction bits, relative to the
        maximum after their block
    shifts : int64 [..., G, I, N], right shift of sums and accumulators before each block; 0
        for block 0 of a head without a learned sink
    sums : int64 [..., G, I], the softmax denominator
    """

    weights: list[Tensor]
    shifts: Tensor
    sums: Tensor


def exp2_table(config: EngineConfig) -> Tensor:
    """Return the table of 2**(W - f / 2**F), rounded half up, for f = 0 .. 2**F - 1."""
    size = 1 << config.score_fraction_bits
    one = 1 << config.weight_bits
    return torch.tensor([int(one * 2 ** (-f / size) + 0.5) for f in range(size)])


def online_softmax(
    config: EngineConfig, scores: Tensor, visible: Tensor, learned_sinks: LearnedSinks | None = None
) -> BlockWeights:
    """Compute softmax weights of tokens in their order, in blocks of B.

    Parameters
    ----------
    scores : int64 [..., G, I, T], log2 domain, F fraction bits
    visible : bool [..., I, T]; each row true for a prefix of the tokens
    learned_sinks : [..., G], from which the softmax of every query starts; none when None
    """
    padding = -scores.shape[-1] % config.block
    padded = (
        torch.nn.functional.pad(x, (0, padding)).unflatten(-1, (-1, config.block))
        for x in (scores, visible)
    )
    return softmax_of_blocks(config, [BlockScores(0, *padded)], learned_sinks)


def softmax_of_blocks(
    config: EngineConfig, parts: Sequence[BlockScores], learned_sinks: LearnedSinks | None = None
) -> BlockWeights:
    """Compute softmax weights as the hardware does: block by block.

    The tokens of a block may come from several parts. A query must see a token in block 0, and in
    every block up to its last.

    Parameters
    ----------
    learned_sinks : [..., G], from which the softmax of every query starts; none when None
    """
    fraction = config.score_fraction_bits
    count = max(part.end for part in parts)
    seen = [part.visible[..., None, :, :, :] for part in parts]
    shape = *parts[0].scores.shape[:-2], count
    largest = torch.full(shape, _ABSENT, dtype=torch.long, device=parts[0].scores.device)
    for part, here in zip(parts, seen, strict=True):
        blocks = largest[..., part.first : part.end]
        torch.maximum(blocks, torch.where(here, part.scores, _ABSENT).amax(-1), out=blocks)
    ceilings = -((-largest) >> fraction)
    table = exp2_table(config).to(largest.device)
    maximum, sums = ceilings[..., 0], torch.zeros_like(ceilings[..., 0])
    if learned_sinks is not None:
        present = learned_sinks.present(config)[..., None]
        maximum = torch.where(present, learned_sinks.maximum[..., None], maximum)
        sums = torch.where(present, learned_sinks.weight[..., None], sums)
    weights, shifts = [torch.zeros_like(part.scores) for part in parts], torch.zeros_like(ceilings)
    for block in range(count):
        any_seen = largest[..., block] > _ABSENT
        full = (sums >= config.sum_limit) & any_seen  # a query has no more blocks than tokens
        raised = torch.maximum(maximum + full, ceilings[..., block])
        shifts[..., block] = (raised - maximum).clamp(max=config.accumulator_bits)
        maximum = raised
        sums = sums >> shifts[..., block]
        for part, here, found in zip(parts, seen, weights, strict=True):
            if not part.first <= block < part.end:
                continue
            row = block - part.first
            visible = here[..., row, :]
            scores = part.scores[..., row, :]
            below = torch.where(visible, (maximum[..., None] << fraction) - scores, 0)
            # a weight of one (2**W) shifted by more than W + 1 bits rounds to zero
            shift = (below >> fraction).clamp(max=config.weight_bits + 2)
            weight = rshift_round(table[below & ((1 << fraction) - 1)], shift) * visible
            found[..., row, :] = weight
            sums = sums + weight.sum(-1)
    return BlockWeights(weights, shifts, sums)
