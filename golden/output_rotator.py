"""Golden output rotator: attention outputs, rotated back as the values were rotated.

``s * (H out)`` on blocks of n elements undoes the rotation up to the factor n, a power of two that
goes into the exponent: sums and differences of integers, nothing is rounded.
"""

from __future__ import annotations

from torch import Tensor

from golden.hadamard import transposed_hadamard
from kvtq_hw.contract.config import EngineConfig

__all__ = ["output_rotator"]


def output_rotator(
    config: EngineConfig, values: Tensor, exponent: Tensor, rotate: bool
) -> tuple[Tensor, Tensor]:
    """Outputs in the domain of the values as they came: true output = values * 2**exponent.

    Parameters
    ----------
    values : int64 [..., D], outputs of the normalizer, or of `golden.engine.attend`
    exponent : int64 [...], of the true outputs before
    rotate : whether the values were rotated

    Returns
    -------
    Values, at most n times as large, and their exponent
    """
    if not rotate:
        return values, exponent
    return transposed_hadamard(values), exponent - (config.rotation_size.bit_length() - 1)
