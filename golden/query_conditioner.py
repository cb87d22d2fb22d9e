"""Golden query conditioner: rotates 16-bit queries and rounds them to the lanes' width.

Let ``z = H (s * q)`` where keys are rotated, and ``z = q`` where they are not. The smallest shift
that makes a query fit is ``shift = max(0, bitlen(max_d |z[d]|) - (query_bits - 1))``. The result is
``q'[d] = rshift_round(z[d], shift)``, clamped to +-query_max; the exponent decreases by the shift.
"""

from __future__ import annotations

import torch

from golden.fixed_point import rshift_round
from golden.hadamard import hadamard
from golden.queries import Queries
from kvtq_hw.contract.config import EngineConfig

__all__ = ["query_conditioner"]


def query_conditioner(config: EngineConfig, queries: Queries, rotate: bool) -> Queries:
    """Condition queries from `golden.queries.quantize_queries`.

    Returns
    -------
    Queries with magnitudes up to ``query_max`` and exponents in the range of `query_exponent`
    """
    z = hadamard(queries.values) if rotate else queries.values
    length = torch.frexp(z.abs().amax(-1).double()).exponent.long()  # bits of the largest magnitude
    shift = (length - (config.query_bits - 1)).clamp(min=0)
    values = rshift_round(z, shift[..., None]).clamp(-config.query_max, config.query_max)
    lowest = -1 << (config.query_exponent_bits - 1)
    return Queries(values, (queries.exponent - shift).clamp(min=lowest))
