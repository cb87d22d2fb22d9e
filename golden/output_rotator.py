"""Golden output rotator: undoes the rotation of the values in attention outputs.

On blocks of n elements, ``s * (H out)`` undoes the rotation up to the factor n, a power of two that
goes into the exponent. The transform only adds and subtracts integers; nothing is rounded.
"""

from __future__ import annotations

from torch import Tensor

from golden.hadamard import transposed_hadamard
from kvtq_hw.contract.config import EngineConfig

__all__ = ["output_rotator"]


def output_rotator(
    config: EngineConfig, values: Tensor, exponent: Tensor, rotate: bool
) -> tuple[Tensor, Tensor]:
    """Rotate outputs back to the domain of unrotated values: true output = values * 2**exponent.

    Parameters
    ----------
    values : int64 [..., D], outputs of the normalizer, or of `golden.engine.attend`
    exponent : int64 [...], exponent of these outputs
    rotate : whether the cached values were rotated

    Returns
    -------
    Rotated outputs, at most n times as large, and their exponent
    """
    if not rotate:
        return values, exponent
    return transposed_hadamard(values), exponent - (config.rotation_size.bit_length() - 1)
