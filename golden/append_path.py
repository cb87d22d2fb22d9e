"""Golden append path: what becomes of new vectors before they are quantized, and their records.

Hardware's twin starts from 16-bit integers; `golden.conditioning` makes those from a model's
numbers and then does the same.
"""

from __future__ import annotations

from torch import Tensor

from golden.hadamard import hadamard
from golden.planes import Planes
from golden.record_packer import pack_record
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig

__all__ = ["condition", "records"]


def condition(vectors: Tensor, centre: Tensor | None, rotate: bool) -> Tensor:
    """16-bit vectors [..., D], centred and rotated: int64, ready for `golden.quantizer`.

    -2**15 is read as -VECTOR_MAX in vectors and centre [..., D].
    """
    vectors = vectors.long().clamp(min=-VECTOR_MAX)
    if centre is not None:
        vectors = vectors - centre.long().clamp(min=-VECTOR_MAX)
    return hadamard(vectors) if rotate else vectors


def records(config: EngineConfig, planes: Planes, unit_first: bool) -> tuple[Tensor, Tensor]:
    """Records of vectors with the same code, and the largest exponent of each one's scales.

    Returns
    -------
    uint8 [..., T, bytes], int64 [..., T]
    """
    exponents = planes.exponent.masked_fill(~planes.unit, 0).amax(-1)
    return pack_record(config, planes, unit_first), exponents
