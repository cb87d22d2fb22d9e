"""Queries as integer vectors with one power-of-two exponent per vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.fixed_point import power_of_two
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig

__all__ = ["Queries", "quantize_queries"]


@dataclass(frozen=True)
class Queries:
    """I queries of each of the G heads of a group: true query = values * 2**(-F - exponent).

    values : int64 [..., G, I, D]; magnitudes are at most VECTOR_MAX for queries from the host, and
        at most `query_max` for the lanes, behind `golden.query_conditioner`
    exponent : int64 [..., G, I], the contract's `query_exponent`
    """

    values: Tensor
    exponent: Tensor


def quantize_queries(config: EngineConfig, queries: Tensor) -> Queries:
    """Round ``queries * log2(e) / sqrt(D)`` to 16-bit integers times the smallest 2**x that fits.

    The host does this before a job.

    Parameters
    ----------
    queries : float [..., G, I, D], such that ``q.k`` with the integer keys is the real dot product,
        not yet scaled by 1/sqrt(D)

    Raises
    ------
    ValueError
        When an element is not finite.
    """
    if not torch.isfinite(queries).all():
        raise ValueError("queries hold an element that is not finite")
    scaled = queries.double() * (math.log2(math.e) / math.sqrt(config.head_dim))
    largest = scaled.abs().amax(-1)
    # frexp: largest / VECTOR_MAX = m * 2**x with 0.5 <= m < 1, so 2**x is the next power of two
    exponent = torch.frexp(largest / VECTOR_MAX).exponent.long()
    values = (scaled * power_of_two(-exponent[..., None])).round().long()
    values = values.clamp(-VECTOR_MAX, VECTOR_MAX)
    field = -config.score_fraction_bits - exponent
    limit = (1 << (config.query_exponent_bits - 1)) - 1
    # a query too small for the exponent field scores zero against every key, as with the limit
    return Queries(values, torch.where(largest == 0, limit, field).clamp(-limit - 1, limit))
