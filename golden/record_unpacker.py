"""Golden record unpacker: the bytes of records (`kvtq_hw.contract.layout`) to planes."""

from __future__ import annotations

import torch
from torch import Tensor

from golden.planes import Planes
from golden.scale import split_scale
from golden.unpacker import unpack
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side
from kvtq_hw.contract.packing import plane_bytes, scale_bytes, vector_bytes

__all__ = ["unpack_records"]


def unpack_records(
    config: EngineConfig, data: Tensor, digits: int, residual: bool, side: Side
) -> Planes:
    """Unpack records uint8 [..., T, record bytes] into planes with digits [..., T, P, D].

    Parameters
    ----------
    digits : number of planes per record
    residual : each plane is a run of its own; otherwise all planes are one run
    side : "key" or "value", which determines the order of the planes of a run

    Raises
    ------
    ValueError
        When the number of bytes is not that of such a record.
    """
    runs = digits if residual else 1
    expected = vector_bytes(config, digits, runs)
    if data.shape[-1] != expected:
        raise ValueError(f"data has {data.shape[-1]} bytes per record; must be {expected}")
    words = data.unflatten(-1, (runs, -1))  # a run's scale word, then its planes
    scales, packed = words.split([scale_bytes(config), expected // runs - scale_bytes(config)], -1)
    scale = (scales.long() << 8 * torch.arange(scales.shape[-1])).sum(-1)
    fraction, exponent = split_scale(config, scale)

    planes = packed.unflatten(-1, (-1, plane_bytes(config.packing, config.head_dim)))
    if side == "key":
        planes = planes.flip(-2)
    trits = unpack(config.packing, planes, config.head_dim)

    # the scale belongs to the unit plane, which is first within a run of `Planes`
    behind = (0, digits // runs - 1)
    pad = torch.nn.functional.pad
    unit = pad(torch.ones_like(fraction, dtype=torch.bool)[..., None], behind)
    return Planes(
        trits.flatten(-3, -2),
        unit.flatten(-2),
        pad(fraction[..., None], behind).flatten(-2),
        pad(exponent[..., None], behind).flatten(-2),
    )
