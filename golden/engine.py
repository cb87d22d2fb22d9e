"""Golden engine: integer-exact decode attention, the composition of the golden blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from golden.normalizer import normalizer
from golden.online_softmax import online_softmax
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from golden.select_accumulate import select_accumulate
from golden.select_add import select_add
from golden.weight_scaler import weight_scaler
from kvtq_hw.config import EngineConfig

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
        """The outputs as float64 [..., G, I, D]."""
        return torch.ldexp(self.values.double(), self.exponent[..., None, :, None])


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
) -> Attention:
    """Attention of I queries a head over T tokens, every bit as docs/contract.md says.

    Parameters
    ----------
    queries : values [..., G, I, D]
    keys, values : Planes [..., T, P, D]; P may differ between the two
    visible : bool [..., I, T], rows that are true for a prefix of one common set of tokens (causal
        attention, with or without padded tokens); all tokens when None. Blocks are counted over the
        common set, so padding changes no bit. A row without any token gives zeros.
    """
    if visible is None:
        shape = (*keys.trits.shape[:-3], queries.values.shape[-2], keys.tokens)
        visible = torch.ones(shape, dtype=torch.bool, device=keys.trits.device)
    else:
        keys, values, visible = _align_tokens(keys, values, visible)
    sums = select_add(keys.trits, queries.values)
    scores, saturated = plane_scaler(config, sums, keys, queries.exponent)
    softmax = online_softmax(config, scores, visible)
    exponent = value_exponent(values, visible)

    padding = softmax.weights.shape[-2] * config.block - values.tokens
    values = values.map_tokens(lambda x, axis: _pad_axis(x, axis, padding))
    plane_weights = weight_scaler(config, softmax.weights.flatten(-2), values, exponent)
    accumulators = select_accumulate(
        values.trits.unflatten(-3, (-1, config.block)),
        plane_weights.unflatten(-2, (-1, config.block)),
        softmax.shifts,
    )
    # a row that sees nothing has a zero denominator; its accumulators are zero, so is its output
    outputs = normalizer(config, accumulators, softmax.sums.clamp(min=1))
    return Attention(
        outputs,
        exponent + config.scale_fraction_bits - config.output_fraction_bits,
        (saturated & visible[..., None, :, :]).sum(),
    )


def _align_tokens(keys: Planes, values: Planes, visible: Tensor) -> tuple[Planes, Planes, Tensor]:
    """Move padded tokens behind the real ones, so that blocks count real tokens only."""
    used = visible.any(-2)
    if not (used[..., 1:] & ~used[..., :-1]).any():
        return keys, values, visible
    order = (~used).long().argsort(dim=-1, stable=True)

    def gather(x: Tensor, axis: int) -> Tensor:
        index = order.reshape(*order.shape, *([1] * (-axis - 1)))
        return x.gather(axis, index.expand(x.shape))

    visible = visible.gather(-1, order[..., None, :].expand(visible.shape))
    return keys.map_tokens(gather), values.map_tokens(gather), visible


def _pad_axis(x: Tensor, axis: int, amount: int) -> Tensor:
    """Append `amount` zeros along a negative `axis`."""
    return torch.nn.functional.pad(x, (0, 0) * (-axis - 1) + (0, amount))
