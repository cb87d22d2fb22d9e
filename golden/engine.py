"""Golden engine: integer-exact decode attention, composed of the golden blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from golden.blocks import Blocks
from golden.fixed_point import power_of_two
from golden.key_lanes import key_lanes
from golden.learned_sinks import LearnedSinks
from golden.normalizer import normalizer
from golden.online_softmax import BlockScores, BlockWeights, softmax_of_blocks
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from golden.second_version import SecondVersion
from golden.value_lanes import accumulate, block_sums
from golden.weight_scaler import weight_scaler
from kvtq_hw.contract.config import EngineConfig

__all__ = ["Attention", "Places", "attend", "value_exponent"]


@dataclass(frozen=True)
class Attention:
    """Integer attention outputs: true output = values * 2**exponent.

    values : int64 [..., G, I, D]
    exponent : int64 [..., I]
    saturated : int64 [], number of scores that saturated
    """

    values: Tensor
    exponent: Tensor
    saturated: Tensor

    def to_float(self) -> Tensor:
        """Return the outputs as float64 [..., G, I, D]."""
        return self.values.double() * power_of_two(self.exponent[..., None, :, None])


def value_exponent(values: Planes, visible: Tensor) -> Tensor:
    """Return the largest scale exponent of visible values, int64 [..., I]; 0 if none is visible."""
    largest = torch.where(values.unit, values.exponent, 0).amax(-1)
    return torch.where(visible, largest[..., None, :], 0).amax(-1)


class Places(NamedTuple):
    """Places of the tokens in the engine's order, where this is not the order of their arrival.

    stored : int64 [..., T]
    second : int64 [..., M], of second versions
    """

    stored: Tensor
    second: Tensor


@dataclass(frozen=True)
class _Part:
    """Some tokens as some of the queries see them, arranged in blocks.

    scores : int64 [..., G, I, n, b]
    visible : bool [..., I, n, b]
    values : Planes [..., n * b, P, D]
    """

    blocks: Blocks
    scores: Tensor
    visible: Tensor
    values: Planes


def attend(
    config: EngineConfig,
    queries: Queries,
    keys: Planes,
    values: Planes,
    visible: Tensor | None = None,
    exponent: Tensor | None = None,
    other_keys: SecondVersion[Planes] | None = None,
    other_values: SecondVersion[Planes] | None = None,
    places: Places | None = None,
    *,
    learned_sinks: LearnedSinks | None = None,
) -> Attention:
    """Compute attention of I queries per head over T tokens, to the bit as docs/contract.md says.

    Parameters
    ----------
    queries : values [..., G, I, D]
    keys, values : Planes [..., T, P, D]; P may differ between keys and values
    visible : bool [..., I, T]; all tokens when None. A query that sees no token gets zeros.
    exponent : int64 [..., I], the contract's `value_exponent`, not below any scale exponent of a
        value that the query sees; the largest exponent of the visible values when None
    other_keys, other_values : second versions of some tokens, or None
    places : order of the tokens in the engine. When None, tokens keep their order and each row of
        `visible` must be true for a prefix of one common set of tokens (causal attention, with or
        without padded tokens). Blocks are then counted over this set, so padding changes no bit.
    learned_sinks : [..., G], or None

    Raises
    ------
    ValueError
        For second versions without `exponent`, which must count overwritten scales too.
    """
    if other_values is not None and exponent is None:
        raise ValueError("exponent: None is not allowed where tokens have second versions")
    keys, values = keys.merged(), values.merged()
    if visible is None:
        shape = (*keys.digits.shape[:-3], queries.values.shape[-2], keys.tokens)
        visible = torch.ones(shape, dtype=torch.bool, device=keys.digits.device)
    if exponent is None:
        exponent = value_exponent(values, visible)
    if places is None:
        stored = _real_tokens_first(visible)
        second = stored[..., :0] if other_keys is None else stored[..., other_keys.span]
        places = Places(stored, second)
    saturations = torch.zeros((), dtype=torch.long, device=visible.device)
    sources = [(keys, values, visible, places.stored)]
    if other_keys is not None and other_values is not None:
        first = visible.clone()
        first[..., other_keys.span] &= ~other_keys.seen
        others = other_keys.vectors.merged(), other_values.vectors.merged()
        seen = visible[..., other_keys.span] & other_keys.seen
        sources = [(keys, values, first, places.stored), (*others, seen, places.second)]
    parts = []
    for part_keys, part_values, part_visible, part_places in sources:
        sums = key_lanes(part_keys.digits, queries.values)
        scores, saturated = plane_scaler(config, sums, part_keys, queries.exponent)
        saturations = saturations + (saturated & part_visible[..., None, :, :]).sum()
        parts.append(_part(config, scores, part_values, part_visible, part_places))
    softmax = softmax_of_blocks(
        config,
        [BlockScores(part.blocks.first, part.scores, part.visible) for part in parts],
        learned_sinks,
    )
    added = _added(config, parts, softmax, exponent)
    accumulators = accumulate(added, softmax.shifts)
    # a query that sees nothing has a zero denominator; its accumulators and outputs are zero
    outputs = normalizer(config, accumulators, softmax.sums.clamp(min=1))
    return Attention(
        outputs,
        exponent + config.scale_fraction_bits - config.output_fraction_bits,
        saturations,
    )


def _part(
    config: EngineConfig, scores: Tensor, values: Planes, visible: Tensor, places: Tensor
) -> _Part:
    """Arrange scores [..., G, I, T], values and mask [..., I, T] of tokens in blocks."""
    blocks = Blocks.of(places, config.block)
    return _Part(
        blocks,
        blocks.arrange(scores, -1, between=2),
        blocks.visible(visible),
        values.map_tokens(lambda x, axis: blocks.arrange(x, axis).flatten(axis - 1, axis)),
    )


def _added(
    config: EngineConfig, parts: Sequence[_Part], softmax: BlockWeights, exponent: Tensor
) -> Tensor:
    """Return what each block adds to the accumulators, int64 [..., N, G, I, D]."""
    *leading, group, queries, count = softmax.shifts.shape
    dim = parts[0].values.digits.shape[-1]
    added = softmax.shifts.new_zeros((*leading, count, group, queries, dim))
    for part, weights in zip(parts, softmax.weights, strict=True):
        plane_weights = weight_scaler(config, weights.flatten(-2), part.values, exponent)
        shape = weights.shape[-2:]
        sums = block_sums(
            part.values.digits.unflatten(-3, shape), plane_weights.unflatten(-2, shape)
        )
        added[..., part.blocks.span, :, :, :] += sums
    return added


def _real_tokens_first(visible: Tensor) -> Tensor:
    """Return places of tokens in their order, int64 [T], with padding behind real tokens.

    The result is [..., T] where tokens that no query sees precede others.
    """
    used = visible.any(-2)
    if not (used[..., 1:] & ~used[..., :-1]).any():
        return torch.arange(visible.shape[-1], device=visible.device)
    order = (~used).long().argsort(dim=-1, stable=True)
    return order.argsort(dim=-1)
