"""Golden append path: conditioning of new 16-bit vectors, and their records after quantization.

Like the RTL block, this module starts from 16-bit integers. `golden.conditioning` converts a
model's floating-point vectors to such integers and then does the same.
"""

from __future__ import annotations

from torch import Tensor

from golden.hadamard import hadamard
from golden.planes import Planes
from golden.record_packer import pack_record
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig

__all__ = ["condition", "records"]


def condition(vectors: Tensor, centre: Tensor | None, rotate: bool) -> Tensor:
    """Centre and rotate 16-bit vectors [..., D]: int64, ready for `golden.quantizer`.

    In vectors and centre [..., D], -2**15 is read as -VECTOR_MAX.
    """
    vectors = vectors.long().clamp(min=-VECTOR_MAX)
    if centre is not None:
        vectors = vectors - centre.long().clamp(min=-VECTOR_MAX)
    return hadamard(vectors) if rotate else vectors


def records(config: EngineConfig, planes: Planes, unit_first: bool) -> tuple[Tensor, Tensor]:
    """Pack vectors with the same code into records.

    Returns
    -------
    The records uint8 [..., T, bytes], and the largest scale exponent of each vector, int64 [..., T]
    """
    exponents = planes.exponent.masked_fill(~planes.unit, 0).amax(-1)
    return pack_record(config, planes, unit_first), exponents
