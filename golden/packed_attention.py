"""Single-precision attention of one query straight from the packed bytes.

A decode step reads every cached vector once, and building vectors to use them once is most of its
cost. Here a plane's trits are looked up byte by byte as floats and go into the products as they
are: ``q . k = scale * sum_c 3**c (q . T_c)`` and the same the other way round for the values, which
is what the hardware does with additions alone.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from golden.backends import AttentionJob
from golden.cache import PlaneStore, TieredStore
from golden.unpacker import decode_table
from kvtq_hw.config import EngineConfig
from kvtq_hw.packing import Packing

__all__ = ["attend_one"]


def attend_one(job: AttentionJob) -> Tensor:
    """Float attention of a job's one query over all tokens: float64 [batch, kv_heads, G, 1, D].

    Exact digits and scales, products and sums in float32.
    """
    config = job.cache.config
    queries = (job.real_queries[..., 0, :] / math.sqrt(config.head_dim)).float()
    scores = torch.cat([_dot(config, queries, part) for part in _parts(job.cache.keys)], -1)
    if job.visible is not None:
        scores = scores.masked_fill(~job.visible, -math.inf)
    weights = torch.softmax(scores, -1)  # [batch, kv_heads, G, T]
    if job.visible is not None:
        weights = weights.nan_to_num(0.0)  # a sequence that sees nothing
    outputs, start = torch.zeros_like(queries), 0
    for part in _parts(job.cache.values):
        outputs += _weighted_sum(config, weights[..., start : start + part.tokens], part)
        start += part.tokens
    return outputs[..., None, :].double()


def _parts(store: TieredStore) -> list[PlaneStore]:
    return [part for part in (store.sinks, store.body, store.window) if part.tokens]


def _dot(config: EngineConfig, queries: Tensor, part: PlaneStore) -> Tensor:
    """Products of queries [batch, kv_heads, G, D] with stored vectors: [batch, kv_heads, G, T]."""
    trits, factors = _unpacked(config, part)
    padded = torch.nn.functional.pad(queries, (0, trits.shape[-1] - queries.shape[-1]))
    by_plane = (padded @ trits.mT).unflatten(-1, (part.digits, part.tokens))
    return (by_plane * factors[:, :, None]).sum(-2)


def _weighted_sum(config: EngineConfig, weights: Tensor, part: PlaneStore) -> Tensor:
    """Stored vectors summed with weights [batch, kv_heads, G, T]: [batch, kv_heads, G, D]."""
    trits, factors = _unpacked(config, part)
    by_plane = (weights[..., None, :] * factors[:, :, None]).flatten(-2)
    return (by_plane @ trits)[..., : config.head_dim]


def _unpacked(config: EngineConfig, part: PlaneStore) -> tuple[Tensor, Tensor]:
    """Trits with those of the padding, and every plane's factor.

    Returns
    -------
    trits : float32 [batch, kv_heads, planes * T, D or more]
    factors : float32 [batch, kv_heads, planes, T], scale times 3**c
    """
    data, words = part.packed()
    trits = _trit_table(config.packing).index_select(0, data.flatten().int())
    factors = _scale_table(config).index_select(0, words.flatten().int()).view(words.shape)
    if part.kind == "balanced":
        powers = 3.0 ** torch.arange(part.digits)
        factors = factors * powers[:, None]
    return trits.view(*data.shape[:2], part.digits * part.tokens, -1), factors


@cache
def _trit_table(packing: Packing) -> Tensor:
    """Trits of every byte, float32 [256, digits]."""
    return decode_table(packing).float()


@cache
def _scale_table(config: EngineConfig) -> Tensor:
    """The scale of every stored word, float32 [2**scale_bits]."""
    words = torch.arange(1 << config.scale_bits)
    mantissa = (1 << config.scale_fraction_bits) + (words & ((1 << config.scale_fraction_bits) - 1))
    return torch.ldexp(mantissa.float(), words >> config.scale_fraction_bits)
