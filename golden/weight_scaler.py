"""Golden weight scaler: multiplies softmax weights by the value scale and weight of each plane."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.fixed_point import rshift_round
from golden.planes import Planes
from kvtq_hw.contract.config import EngineConfig

__all__ = ["weight_scaler"]


def weight_scaler(
    config: EngineConfig, weights: Tensor, values: Planes, value_exponent: Tensor
) -> Tensor:
    """Compute each plane's weight, ``3**c * round(p * (2**M + f) * 2**-(M + value_exponent - e))``.

    Parameters
    ----------
    weights : int64 [..., G, I, T], softmax weights p with W fraction bits
    values : planes of the values with their scales, batch axes [...]
    value_exponent : int64 [..., I], at least every exponent e of a visible value

    Returns
    -------
    int64 [..., G, I, T, P]; arbitrary for absent planes, whose digits are zero
    """
    run_start = torch.where(
        values.unit, torch.arange(values.unit.shape[-1], device=values.unit.device), 0
    )
    run_start = run_start.cummax(-1).values
    mantissa = (1 << config.scale_fraction_bits) + values.fraction.gather(-1, run_start)
    exponent = values.exponent.gather(-1, run_start)
    product = weights[..., None] * mantissa[..., None, None, :, :]
    # exponents of invisible tokens may exceed value_exponent; their weights are zero at any shift
    below = (value_exponent[..., None, :, None, None] - exponent[..., None, None, :, :]).clamp(
        min=0
    )
    scaled = rshift_round(product, config.scale_fraction_bits + below)
    return scaled * values.run_weight()[..., None, None, :, :]
