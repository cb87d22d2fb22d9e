"""Single-precision attention of one query straight from the packed bytes.

A decode step reads every cached vector once, and building vectors to use them once is most of its
cost. Here nothing is unpacked. For the keys a table has, for every byte value at every place of a
plane, the sum of the query's elements that its trits select, so a product is one addition a byte
instead of one a trit. For the values it is the other way round: a token's weight is added at the
entry of each of its bytes, and only in the end the trits of an entry say where its sum goes. Numba
compiles the loops; query heads are the lanes of a vector, four at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from golden.cache.attention_job import AttentionJob
from golden.cache.plane_store import PlaneView
from golden.cache.tiered_store import TieredView
from golden.compiled import Array, compiled, loop_part
from golden.packer import encode_table
from kvtq_hw.contract.packing import DIGITS_PER_BYTE

__all__ = ["attend_one"]

_LANES = 4
_TABLES = Array(np.float32, "batch", "kv_heads", "chunks", "places", 256, _LANES, written=True)


def attend_one(job: AttentionJob) -> Tensor:
    """Float attention of a job's one query over all tokens: float64 [batch, kv_heads, G, 1, D].

    Exact digits and scales, products and sums in float32. The cache must be on a CPU.
    """
    cache, queries = job.cache, job.real_queries.detach()
    packing, tokens = cache.config.packing, cache.tokens
    batch, kv_heads, group, _, dim = queries.shape
    shape = batch, kv_heads, -(-group // _LANES)
    bytes_of_groups = encode_table(packing).numpy()
    digits = DIGITS_PER_BYTE[packing]
    places = -(-dim // digits)
    tables = np.empty((*shape, places, 256, _LANES), np.float32)
    _fill_tables(queries.numpy(), 1 / math.sqrt(dim), digits, bytes_of_groups, tables)
    sums = np.zeros((*shape, _LANES, tokens), np.float32)
    for start, arguments in _runs(cache.keys):
        _add_scores(*arguments, tables, start, sums)
    scores = torch.from_numpy(sums)
    if job.visible is not None:
        scores = scores.masked_fill(~job.visible[:, :, None], -math.inf)
    weights = torch.softmax(scores, -1)
    if job.visible is not None:
        weights = weights.nan_to_num(0.0)  # a sequence that sees nothing
    tables[:] = 0
    for start, arguments in _runs(cache.values):
        _scatter_weights(*arguments, tables, start, weights.numpy())
    outputs = np.empty(queries.shape)
    _empty_tables(tables, bytes_of_groups, outputs)
    return torch.from_numpy(outputs)


def _runs(stored: TieredView) -> Iterator[tuple[int, tuple]]:
    """For all planes under one scale: their first token, and what the loops need of them."""
    start = 0
    for part in stored.parts:
        if part.tokens:
            data, words = part.buffers()
            place = part.first, part.tokens, part.config.scale_fraction_bits
            for run in _planes_of_scales(part):
                yield start, (data, words, *run, *place)
        start += part.tokens


def _planes_of_scales(part: PlaneView) -> list[tuple[int, int, int]]:
    """First plane, end and scale of what is under one scale."""
    if part.kind == "balanced":
        return [(0, part.digits, 0)]
    return [(plane, plane + 1, plane) for plane in range(part.digits)]


@compiled(
    "chunks * 4 >= members",
    "dim <= places * digits",
    "groups == 3**digits",
    queries=Array(np.float64, "batch", "kv_heads", "members", 1, "dim", strided=True),
    factor=float,
    digits=int,
    bytes_of_groups=Array(np.uint8, "groups"),
    tables=_TABLES,
)
def _fill_tables(queries, factor, digits, bytes_of_groups, tables):
    """Sums that each byte selects of queries [batch, kv_heads, G, 1, D] times a factor.

    Entry ``tables[b, h, g // 4, place, byte, g % 4]``. Three sums follow from each one of a digit
    less: with -q, with 0 and with +q.
    """
    batch, heads, group, _, dim = queries.shape
    chunks, places = tables.shape[2:4]
    groups = bytes_of_groups.shape[0]
    sums = np.zeros((groups, _LANES), np.float32)
    elements = np.zeros((places * digits, _LANES), np.float32)
    for b in range(batch):
        for h in range(heads):
            for chunk in range(chunks):
                lanes = min(_LANES, group - chunk * _LANES)
                for g in range(lanes):
                    for k in range(dim):
                        elements[k, g] = queries[b, h, chunk * _LANES + g, 0, k] * factor
                for place in range(places):
                    of_place = tables[b, h, chunk, place]
                    sums[0] = 0
                    count = 1
                    for digit in range(digits):
                        element = elements[place * digits + digit]
                        lows, middles, highs = (
                            sums[:count],
                            sums[count : 2 * count],
                            sums[2 * count : 3 * count],
                        )
                        for i in range(count):
                            for g in range(_LANES):
                                middle = lows[i, g]
                                lows[i, g] = middle - element[g]
                                middles[i, g] = middle
                                highs[i, g] = middle + element[g]
                        count *= 3
                    for i in range(groups):
                        entry = of_place[bytes_of_groups[i]]
                        for g in range(_LANES):
                            entry[g] = sums[i, g]


_RUN: dict[str, Array | type[int]] = {
    "data": Array(np.uint8, "batch", "kv_heads", "planes", "capacity", "places"),
    "words": Array((np.uint8, np.int16), "batch", "kv_heads", "scales", "capacity", 1),
    "low": int,
    "high": int,
    "scale": int,
    "first": int,
    "tokens": int,
    "fraction_bits": int,
    "tables": _TABLES,
    "start": int,
}
_RUN_RULES = (
    "0 <= low <= high <= planes",
    "0 <= scale < scales",
    "0 <= tokens and 0 <= first <= capacity - tokens",
    "0 <= start <= context - tokens",
)


@compiled(
    *_RUN_RULES,
    **_RUN,
    scores=Array(np.float32, "batch", "kv_heads", "chunks", _LANES, "context", written=True),
)
def _add_scores(data, words, low, high, scale, first, tokens, fraction_bits, tables, start, scores):
    """Add what keys' planes under one scale give to scores [batch, kv_heads, chunks, 4, T].

    A token's product is the sum of the entries of its bytes, times the scale.
    """
    batch, heads, chunks, places = tables.shape[:4]
    for b in range(batch):
        for h in range(heads):
            for chunk in range(chunks):
                of_chunk = tables[b, h, chunk]
                of_tokens = scores[b, h, chunk, :, start : start + tokens]
                scales = words[b, h, scale]
                weight = np.float32(1)
                for plane in range(low, high):
                    of_plane = data[b, h, plane]
                    for t in range(tokens):
                        stored = np.uint64(first + t)  # unsigned: no check for an index below zero
                        factor = weight * _scale(scales[stored, 0], fraction_bits)
                        s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
                        for place in range(places):
                            entry = of_chunk[place, of_plane[stored, place]]
                            s0 += entry[0]
                            s1 += entry[1]
                            s2 += entry[2]
                            s3 += entry[3]
                        of_tokens[0, t] += s0 * factor
                        of_tokens[1, t] += s1 * factor
                        of_tokens[2, t] += s2 * factor
                        of_tokens[3, t] += s3 * factor
                    weight *= np.float32(3)


@compiled(
    *_RUN_RULES,
    **_RUN,
    weights=Array(np.float32, "batch", "kv_heads", "chunks", _LANES, "context"),
)
def _scatter_weights(
    data, words, low, high, scale, first, tokens, fraction_bits, tables, start, weights
):
    """Add weights [batch, kv_heads, chunks, 4, T] to the entries of values' bytes.

    A token adds its weight times the scale of the planes, which are under one.
    """
    batch, heads, chunks, places = tables.shape[:4]
    for b in range(batch):
        for h in range(heads):
            for chunk in range(chunks):
                of_chunk = tables[b, h, chunk]
                of_tokens = weights[b, h, chunk, :, start : start + tokens]
                scales = words[b, h, scale]
                weight = np.float32(1)
                for plane in range(low, high):
                    of_plane = data[b, h, plane]
                    for t in range(tokens):
                        stored = np.uint64(first + t)  # unsigned: no check for an index below zero
                        factor = weight * _scale(scales[stored, 0], fraction_bits)
                        w0, w1 = of_tokens[0, t] * factor, of_tokens[1, t] * factor
                        w2, w3 = of_tokens[2, t] * factor, of_tokens[3, t] * factor
                        for place in range(places):
                            entry = of_chunk[place, of_plane[stored, place]]
                            entry[0] += w0
                            entry[1] += w1
                            entry[2] += w2
                            entry[3] += w3
                    weight *= np.float32(3)


@compiled(
    "chunks * 4 >= members",
    tables=_TABLES,
    bytes_of_groups=Array(np.uint8, "groups"),
    outputs=Array(np.float64, "batch", "kv_heads", "members", 1, "dim", written=True),
)
def _empty_tables(tables, bytes_of_groups, outputs):
    """Sums [batch, kv_heads, G, 1, D] of entries times the trits of their bytes.

    Digit by digit, from the lowest: entries with +1 minus entries with -1; then the three of every
    combination of the higher digits count as one.
    """
    batch, heads, group, _, dim = outputs.shape
    chunks, places = tables.shape[2:4]
    groups = bytes_of_groups.shape[0]
    sums = np.empty((groups, _LANES), np.float32)
    difference = np.empty(_LANES, np.float32)
    for b in range(batch):
        for h in range(heads):
            for chunk in range(chunks):
                lanes = min(_LANES, group - chunk * _LANES)
                k = 0
                for place in range(places):
                    for i in range(groups):
                        for g in range(_LANES):
                            sums[i, g] = tables[b, h, chunk, place, bytes_of_groups[i], g]
                    count = groups // 3
                    while count:
                        difference[:] = 0
                        for i in range(count):
                            for g in range(_LANES):
                                minus, plus = sums[3 * i, g], sums[3 * i + 2, g]
                                difference[g] += plus - minus
                                sums[i, g] = minus + sums[3 * i + 1, g] + plus
                        if k < dim:
                            for g in range(lanes):
                                outputs[b, h, chunk * _LANES + g, 0, k] = difference[g]
                        count //= 3
                        k += 1


_ZERO = np.float32(0)


@loop_part
def _scale(word, fraction_bits):
    """The scale of a stored word, float32."""
    one = 1 << fraction_bits
    return np.float32((one + (word & (one - 1))) << (word >> fraction_bits))
