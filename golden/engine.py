"""Golden engine: integer-exact decode attention, the composition of the golden blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from golden.multiply_accumulate import weighted_sums
from golden.multiply_add import multiply_add
from golden.normalizer import normalizer
from golden.online_softmax import online_softmax
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from golden.select_accumulate import accumulate, block_sums
from golden.select_add import select_add
from golden.weight_scaler import weight_scaler
from kvtq_hw.contract.config import EngineConfig

__all__ = ["Attention", "Recent", "attend", "value_exponent"]


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
        """The outputs as float64 [..., G, I, D]."""
        return torch.ldexp(self.values.double(), self.exponent[..., None, :, None])


@dataclass(frozen=True)
class Recent:
    """The newest R tokens as they were before they left the window of recent tokens.

    In a pass of several queries an early query sees tokens in the window that have left it for a
    later one.

    keys, values : Planes [..., R, P, D]
    seen : bool [..., I, R], the query sees the token as it is here
    """

    keys: Planes
    values: Planes
    seen: Tensor


def value_exponent(values: Planes, visible: Tensor) -> Tensor:
    """Largest scale exponent of the visible values, int64 [..., I]; 0 where none is visible."""
    largest = torch.where(values.unit, values.exponent, 0).amax(-1)
    return torch.where(visible, largest[..., None, :], 0).amax(-1)


def attend(
    config: EngineConfig,
    queries: Queries,
    keys: Planes,
    values: Planes,
    visible: Tensor | None = None,
    recent: Recent | None = None,
    exponent: Tensor | None = None,
) -> Attention:
    """Attention of I queries a head over T tokens, every bit as docs/contract.md says.

    Parameters
    ----------
    queries : values [..., G, I, D]
    keys, values : Planes [..., T, P, D]; P may differ between the two
    visible : bool [..., I, T], rows that are true for a prefix of one common set of tokens (causal
        attention, with or without padded tokens); all tokens when None. Blocks are counted over the
        common set, so padding changes no bit. A row without any token gives zeros.
    recent : other versions of the newest tokens, and who sees those
    exponent : int64 [..., I], the contract's `value_exponent`, at least every scale exponent that a
        query meets; the largest of those of the visible values when None

    Raises
    ------
    ValueError
        For other versions without an exponent, which must count what has been overwritten too.
    """
    if recent is not None and exponent is None:
        raise ValueError("exponent: None is not allowed where tokens have other versions")
    keys, values = keys.merged(), values.merged()
    if visible is None:
        shape = (*keys.digits.shape[:-3], queries.values.shape[-2], keys.tokens)
        visible = torch.ones(shape, dtype=torch.bool, device=keys.digits.device)
    else:
        keys, values, visible, recent = _align_tokens(keys, values, visible, recent)
    scores, saturated = _scores(config, queries, keys)
    if exponent is None:
        exponent = value_exponent(values, visible)
    other = None if recent is None else _from_block_start(config, recent, keys.tokens)
    if other is not None:
        newest = slice(keys.tokens - other.keys.tokens, None)
        seen = other.seen[..., None, :, :]
        recent_scores, recent_saturated = _scores(config, queries, other.keys)
        scores[..., newest] = torch.where(seen, recent_scores, scores[..., newest])
        saturated[..., newest] = torch.where(seen, recent_saturated, saturated[..., newest])
    softmax = online_softmax(config, scores, visible)
    weights = softmax.weights.flatten(-2)
    if other is None:
        added = _block_sums(config, weights, values, exponent)
    else:
        apart = torch.where(seen, weights[..., newest][..., : seen.shape[-1]], 0)
        weights[..., newest][..., : seen.shape[-1]] -= apart
        added = _block_sums(config, weights, values, exponent)
        newest_added = _block_sums(config, apart, other.values, exponent)
        added[..., -newest_added.shape[-4] :, :, :, :] += newest_added
    accumulators = accumulate(added, softmax.shifts)
    # a row that sees nothing has a zero denominator; its accumulators are zero, so is its output
    outputs = normalizer(config, accumulators, softmax.sums.clamp(min=1))
    return Attention(
        outputs,
        exponent + config.scale_fraction_bits - config.output_fraction_bits,
        (saturated & visible[..., None, :, :]).sum(),
    )


def _scores(config: EngineConfig, queries: Queries, keys: Planes) -> tuple[Tensor, Tensor]:
    """Scores [..., G, I, T] of every query with every key, and which saturated."""
    key_lanes = multiply_add if config.integer_bits else select_add
    sums = key_lanes(keys.digits, queries.values)
    return plane_scaler(config, sums, keys, queries.exponent)


def _block_sums(config: EngineConfig, weights: Tensor, values: Planes, exponent: Tensor) -> Tensor:
    """What each block adds to the accumulators, [..., N, G, I, D], from weights [..., G, I, T]."""
    padding = -values.tokens % config.block
    weights = _pad_axis(weights, -1, values.tokens + padding - weights.shape[-1])
    values = values.map_tokens(lambda x, axis: _pad_axis(x, axis, padding))
    plane_weights = weight_scaler(config, weights, values, exponent)
    value_lanes = weighted_sums if config.integer_bits else block_sums
    return value_lanes(
        values.digits.unflatten(-3, (-1, config.block)),
        plane_weights.unflatten(-2, (-1, config.block)),
    )


def _from_block_start(config: EngineConfig, recent: Recent, tokens: int) -> Recent:
    """Recent tokens from the start of a block on: unseen ones in front where there were none."""
    keys, values = recent.keys.merged(), recent.values.merged()
    missing = (tokens - keys.tokens) % config.block

    def extend(x: Tensor, axis: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, 0) * (-axis - 1) + (missing, 0))

    keys, values = keys.map_tokens(extend), values.map_tokens(extend)
    unit = torch.ones_like(keys.unit)  # plane 0 opens a run, in absent tokens as well
    return Recent(replace(keys, unit=unit), replace(values, unit=unit), extend(recent.seen, -1))


def _align_tokens(
    keys: Planes, values: Planes, visible: Tensor, recent: Recent | None
) -> tuple[Planes, Planes, Tensor, Recent | None]:
    """Move padded tokens behind the real ones, so that blocks count real tokens only."""
    used = visible.any(-2)
    if not (used[..., 1:] & ~used[..., :-1]).any():
        return keys, values, visible, recent
    order = (~used).long().argsort(dim=-1, stable=True)

    def gather(x: Tensor, axis: int) -> Tensor:
        index = order.reshape(*order.shape, *([1] * (-axis - 1)))
        return x.gather(axis, index.expand(x.shape))

    def gather_seen(x: Tensor) -> Tensor:
        return x.gather(-1, order[..., None, :].expand(x.shape))

    if recent is not None:  # of all tokens, so that they move in the same way
        older = keys.tokens - recent.keys.tokens

        def extend(x: Tensor, axis: int) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0) * (-axis - 1) + (older, 0))

        seen = extend(recent.seen, -1).expand(visible.shape)
        recent = Recent(
            recent.keys.merged().map_tokens(extend).map_tokens(gather),
            recent.values.merged().map_tokens(extend).map_tokens(gather),
            gather_seen(seen),
        )
    return keys.map_tokens(gather), values.map_tokens(gather), gather_seen(visible), recent


def _pad_axis(x: Tensor, axis: int, amount: int) -> Tensor:
    """Append `amount` zeros along a negative `axis`."""
    return torch.nn.functional.pad(x, (0, 0) * (-axis - 1) + (0, amount))
