"""Golden dequantizer: ternary planes to integer vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.planes import Planes
from golden.scale import decode_scale
from kvtq_hw.contract.config import EngineConfig

__all__ = ["dequantize"]


def dequantize(config: EngineConfig, planes: Planes) -> Tensor:
    """Return the integer vectors that planes represent, int64 [..., T, D]."""
    scale = decode_scale(config, planes.fraction, planes.exponent)
    run = planes.run_index()
    first = torch.zeros_like(scale).scatter_add_(-1, run, torch.where(planes.unit, scale, 0))
    weight = first.gather(-1, run) * planes.run_weight()
    return (weight[..., None] * planes.digits).sum(-2)
