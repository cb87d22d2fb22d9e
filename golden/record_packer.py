"""Golden record packer: planes of a vector to the bytes of its record in memory.

A record holds its runs one after the other. A run is the scale word, little endian, and then the
planes in the order in which the engine takes them: the unit plane first for values, last for keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.packer import pack
from golden.planes import Planes
from golden.scale import join_scale
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import scale_bytes

__all__ = ["pack_record"]


def pack_record(config: EngineConfig, planes: Planes, unit_first: bool) -> Tensor:
    """Pack vectors with the same number of planes in the same runs into records.

    Parameters
    ----------
    planes : Planes [..., T, P, D], none of them absent
    unit_first : order of the planes of a run: True for values, False for keys

    Returns
    -------
    uint8 [..., T, vector_bytes(config, P, runs)]

    Raises
    ------
    ValueError
        When vectors differ in their runs.
    """
    unit = planes.unit.flatten(0, -2)
    if not bool((unit == unit[0]).all()):
        raise ValueError("planes: vectors differ in their runs; must be the same for all")
    data = pack(config.packing, planes.digits)
    words = join_scale(config, planes.fraction, planes.exponent)
    shifts = 8 * torch.arange(scale_bytes(config), device=words.device)
    scales = (words[..., None] >> shifts & 255).to(torch.uint8)
    starts = unit[0].nonzero()[:, 0].tolist()
    parts = []
    for start, stop in zip(starts, [*starts[1:], unit.shape[-1]], strict=True):
        run = data[..., start:stop, :]
        parts += [scales[..., start, :], (run if unit_first else run.flip(-2)).flatten(-2)]
    return torch.cat(parts, -1)
