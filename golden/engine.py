"""Golden engine: integer-exact decode attention, composed of the golden blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from golden.fixed_point import power_of_two
from golden.key_lanes import key_lanes
from golden.normalizer import normalizer
from golden.online_softmax import online_softmax
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from golden.second_version import SecondVersion
from golden.value_lanes import accumulate, block_sums
from golden.weight_scaler import weight_scaler
from kvtq_hw.contract.config import EngineConfig

__all__ = ["Attention", "attend", "value_exponent"]


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


def attend(
    config: EngineConfig,
    queries: Queries,
    keys: Planes,
    values: Planes,
    visible: Tensor | None = None,
    exponent: Tensor | None = None,
    other_keys: SecondVersion[Planes] | None = None,
    other_values: SecondVersion[Planes] | None = None,
) -> Attention:
    """Compute attention of I queries per head over T tokens, to the bit as docs/contract.md says.

    Parameters
    ----------
    queries : values [..., G, I, D]
    keys, values : Planes [..., T, P, D]; P may differ between keys and values
    visible : bool [..., I, T]; each row is true for a prefix of one common set of tokens (causal
        attention, with or without padded tokens); all tokens when None. Blocks are counted over the
        common set, so padding changes no bit. A query that sees no token gets zeros.
    exponent : int64 [..., I], the contract's `value_exponent`, not below any scale exponent of a
        value that the query sees; the largest exponent of the visible values when None
    other_keys, other_values : second versions of some tokens, or None

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
    scores, saturated = _scores(config, queries, keys, other_keys)
    saturations = (saturated & visible[..., None, :, :]).sum()
    order = _real_tokens_first(visible)
    if order is not None:
        scores, visible = _ordered(scores, order, before=2), _ordered(visible, order, before=1)
        values = values.map_tokens(lambda x, axis: _ordered(x, order, axis))
        other_values = None if other_values is None else _ordered_version(other_values, order)
    if exponent is None:
        exponent = value_exponent(values, visible)
    softmax = online_softmax(config, scores, visible)
    weights = softmax.weights.flatten(-2)
    added = _added(config, weights, values, other_values, exponent)
    accumulators = accumulate(added, softmax.shifts)
    # a query that sees nothing has a zero denominator; its accumulators and outputs are zero
    outputs = normalizer(config, accumulators, softmax.sums.clamp(min=1))
    return Attention(
        outputs,
        exponent + config.scale_fraction_bits - config.output_fraction_bits,
        saturations,
    )


def _scores(
    config: EngineConfig, queries: Queries, keys: Planes, other: SecondVersion[Planes] | None
) -> tuple[Tensor, Tensor]:
    """Return scores [..., G, I, T] with the version of each key that a query sees, and saturation.

    Saturation is bool [..., G, I, T].
    """
    sums = key_lanes(keys.digits, queries.values)
    scores, saturated = plane_scaler(config, sums, keys, queries.exponent)
    if other is not None:
        other_scores, other_saturated = _scores(config, queries, other.vectors.merged(), None)
        other.replace(scores, other_scores)
        other.replace(saturated, other_saturated)
    return scores, saturated


def _added(
    config: EngineConfig,
    weights: Tensor,
    values: Planes,
    other: SecondVersion[Planes] | None,
    exponent: Tensor,
) -> Tensor:
    """Return what each block adds to the accumulators, [..., N, G, I, D], second versions included.

    Parameters
    ----------
    weights : [..., G, I, N * B]; weights of second versions are set to zero in place
    """
    if other is None:
        return _block_sums(config, weights, values, exponent)
    apart = other.take(weights)
    added = _block_sums(config, weights, values, exponent)
    block, place = divmod(other.start, config.block)
    vectors = other.vectors.merged().map_tokens(lambda x, axis: _pad_axis(x, axis, place, 0))
    sums = _block_sums(config, _pad_axis(apart, -1, place, 0), vectors, exponent)
    added[..., block : block + sums.shape[-4], :, :, :] += sums
    return added


def _block_sums(config: EngineConfig, weights: Tensor, values: Planes, exponent: Tensor) -> Tensor:
    """Return what each block adds to the accumulators, [..., N, G, I, D].

    Parameters
    ----------
    weights : [..., G, I, T]
    """
    padding = -values.tokens % config.block
    weights = _pad_axis(weights, -1, 0, values.tokens + padding - weights.shape[-1])
    values = values.map_tokens(lambda x, axis: _pad_axis(x, axis, 0, padding))
    plane_weights = weight_scaler(config, weights, values, exponent)
    return block_sums(
        values.digits.unflatten(-3, (-1, config.block)),
        plane_weights.unflatten(-2, (-1, config.block)),
    )


def _real_tokens_first(visible: Tensor) -> Tensor | None:
    """Return the order of tokens int64 [..., T] that moves padding behind real tokens.

    None where padding is there already. Blocks count real tokens only.
    """
    used = visible.any(-2)
    if not (used[..., 1:] & ~used[..., :-1]).any():
        return None
    return (~used).long().argsort(dim=-1, stable=True)


def _ordered(x: Tensor, order: Tensor, axis: int = -1, before: int = 0) -> Tensor:
    """Reorder the tokens along a negative `axis` of `x`.

    The axes of `order` without the last are the leading axes of `x`; `before` further axes of `x`
    follow before the token axis.
    """
    behind = -axis - 1
    shape = (*order.shape[:-1], *[1] * before, order.shape[-1], *[1] * behind)
    return x.gather(axis, order.reshape(shape).expand(x.shape))


def _ordered_version(other: SecondVersion[Planes], order: Tensor) -> SecondVersion[Planes]:
    """Extend second versions to all tokens, then reorder; no query sees the added ones."""
    missing = other.start, order.shape[-1] - other.span.stop

    def all_tokens(x: Tensor, axis: int) -> Tensor:
        return _pad_axis(x, axis, *missing)

    vectors = other.vectors.merged().map_tokens(all_tokens)
    seen = all_tokens(other.seen, -1)
    return SecondVersion(
        vectors.map_tokens(lambda x, axis: _ordered(x, order, axis)),
        0,
        _ordered(seen.expand(*order.shape[:-1], *seen.shape[-2:]), order, before=1),
    )


def _pad_axis(x: Tensor, axis: int, before: int, behind: int) -> Tensor:
    """Pad a negative `axis` with `before` zeros in front and `behind` zeros at the end."""
    return torch.nn.functional.pad(x, (0, 0) * (-axis - 1) + (before, behind))
