"""Single-precision attention of one query, computed directly on the packed bytes.

A decode step reads every cached vector once; unpacking the vectors would be most of its cost. This
module unpacks nothing. All work goes through tables float32
[batch, kv_heads, quads, places, 256, 4]: one entry per place of a byte in a plane, per value of
the byte, and per query head of a quad (four query heads):

- For the keys, an entry is the sum of the query's elements that the byte's trits select. A dot
  product then takes one addition per byte instead of one per trit.
- For the values, the direction is reversed. A token's weight is added to the entry of each of the
  token's bytes. At the end, the trits of each entry select the output elements that get its sum.

Numba compiles the loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.cache.attention_job import AttentionJob
from golden.cache.plane_store import PlaneView
from golden.cache.tiered_store import TieredView
from golden.compiled import Array, Fields, compiled, loop_part
from golden.learned_sinks import softmax
from golden.packer import encode_table
from kvtq_hw.contract.packing import DIGITS_PER_BYTE

__all__ = ["attend_one"]

_LANES = 4
_TABLES = Array(np.float32, "batch", "kv_heads", "quads", "places", 256, _LANES, written=True)


class PackedRun(NamedTuple):
    """One run (planes under one scale) of all tokens of a part of the cache.

    data : uint8 [batch, kv_heads, planes, capacity, places], packed planes
    words : integers [batch, kv_heads, scales, capacity, 1], scale words
    low, high : the run's planes are ``low .. high - 1``, with weights 1, 3, 9, ...
    scale : index of the run's scale
    first, tokens : index of the first token in the buffers, and number of tokens
    fraction_bits : fraction bits of a scale word
    start : index of the first token in the context
    """

    data: np.ndarray
    words: np.ndarray
    low: int
    high: int
    scale: int
    first: int
    tokens: int
    fraction_bits: int
    start: int


def attend_one(job: AttentionJob) -> Tensor:
    """Compute attention of a job's one query over all tokens: float64 [batch, kv_heads, G, 1, D].

    Digits and scales are exact; products and sums are float32. The cache must be on a CPU.
    """
    cache, queries = job.cache, job.real_queries.detach()
    packing, tokens = cache.config.packing, cache.stored
    batch, kv_heads, group, _, dim = queries.shape
    shape = batch, kv_heads, -(-group // _LANES)
    bytes_of_groups = encode_table(packing).numpy()
    digits = DIGITS_PER_BYTE[packing]
    places = -(-dim // digits)
    tables = np.empty((*shape, places, 256, _LANES), np.float32)
    _fill_tables(queries.numpy(), 1 / math.sqrt(dim), digits, bytes_of_groups, tables)
    sums = np.zeros((*shape, _LANES, tokens), np.float32)
    for run in _runs(cache.keys):
        _add_scores(run, tables, sums)
    scores = torch.from_numpy(sums)[..., None, :]
    sinks = _of_lanes(job.sink_logits)
    if job.visible is None:
        weights = softmax(scores, sinks)
    else:
        scores = scores.masked_fill(~job.visible[:, :, None, None], -math.inf)
        weights = softmax(scores, sinks).nan_to_num(0.0)  # a sequence that sees nothing
    tables.fill(0)
    of_tokens = weights[..., 0, :].contiguous().numpy()
    for run in _runs(cache.values):
        _scatter_weights(run, of_tokens, tables)
    outputs = np.empty(queries.shape)
    _empty_tables(tables, digits, bytes_of_groups, outputs)
    return torch.from_numpy(outputs)


def _of_lanes(sink_logits: Tensor | None) -> Tensor | None:
    """Arrange learned sinks [kv_heads, G] as [kv_heads, quads, 4]; 0 for lanes without a head."""
    if sink_logits is None:
        return None
    padding = -sink_logits.shape[-1] % _LANES
    return torch.nn.functional.pad(sink_logits, (0, padding)).unflatten(-1, (-1, _LANES))


def _runs(stored: TieredView) -> Iterator[PackedRun]:
    """Yield the runs of all parts, in the order of their tokens."""
    start = 0
    for part in stored.parts:
        if part.tokens:
            data, words = part.buffers()
            place = part.first, part.tokens, part.config.scale_fraction_bits, start
            for planes in _planes_of_scales(part):
                yield PackedRun(data, words, *planes, *place)
        start += part.tokens


def _planes_of_scales(part: PlaneView) -> list[tuple[int, int, int]]:
    """Return first plane, end plane and scale index of each run of a part."""
    if part.kind == "balanced":
        return [(0, part.digits, 0)]
    return [(plane, plane + 1, plane) for plane in range(part.digits)]


@compiled(
    "quads * 4 >= members",
    "dim <= places * digits",
    "groups == 3**digits",
    queries=Array(np.float64, "batch", "kv_heads", "members", 1, "dim", strided=True),
    factor=float,
    digits=int,
    bytes_of_groups=Array(np.uint8, "groups"),
    tables=_TABLES,
)
def _fill_tables(queries, factor, digits, bytes_of_groups, tables):
    """Fill tables [batch, kv_heads, quads, places, 256, 4] with sums of selected query elements.

    ``tables[b, h, g // 4, place, byte, g % 4]`` is the sum of the elements of query
    ``queries[b, h, g, 0]`` that the trits of the byte at that place select, times a factor.
    """
    batch, heads, group, _, dim = queries.shape
    quads, places = tables.shape[2:4]
    sums = np.zeros((bytes_of_groups.shape[0], _LANES), np.float32)
    elements = np.zeros((places * digits, _LANES), np.float32)
    for b in range(batch):
        for h in range(heads):
            for quad in range(quads):
                for g in range(min(_LANES, group - quad * _LANES)):
                    for k in range(dim):
                        elements[k, g] = queries[b, h, quad * _LANES + g, 0, k] * factor
                for place in range(places):
                    _sum_groups(elements[place * digits : (place + 1) * digits], sums)
                    entries = tables[b, h, quad, place]
                    for i in range(bytes_of_groups.shape[0]):
                        for g in range(_LANES):
                            entries[bytes_of_groups[i], g] = sums[i, g]


@loop_part
def _sum_groups(elements, sums):
    """Fill sums [3**n, 4] with the sum of elements [n, 4] that each group of n trits selects.

    Each sum over one trit fewer gives three sums: with -q, with 0 and with +q added.
    """
    sums[0] = 0
    count = 1
    for digit in range(elements.shape[0]):
        element = elements[digit]
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


_RUN = Fields(
    PackedRun,
    data=Array(np.uint8, "batch", "kv_heads", "planes", "capacity", "places"),
    words=Array((np.uint8, np.int16), "batch", "kv_heads", "scales", "capacity", 1),
    low=int,
    high=int,
    scale=int,
    first=int,
    tokens=int,
    fraction_bits=int,
    start=int,
)
_RUN_RULES = (
    "0 <= low <= high <= planes",
    "0 <= scale < scales",
    "0 <= tokens and 0 <= first <= capacity - tokens",
    "0 <= start <= context - tokens",
)


@compiled(
    *_RUN_RULES,
    run=_RUN,
    tables=_TABLES,
    scores=Array(np.float32, "batch", "kv_heads", "quads", _LANES, "context", written=True),
)
def _add_scores(run, tables, scores):
    """Add a run of keys to scores [batch, kv_heads, quads, 4, T].

    Each plane of a token adds the sum of the entries that its bytes have in tables
    [batch, kv_heads, quads, places, 256, 4], times the plane's weight and scale.
    """
    batch, heads, quads, places = tables.shape[:4]
    for b in range(batch):
        for h in range(heads):
            for quad in range(quads):
                entries = tables[b, h, quad]
                of_tokens = scores[b, h, quad, :, run.start : run.start + run.tokens]
                scales = run.words[b, h, run.scale]
                weight = np.float32(1)
                for plane in range(run.low, run.high):
                    packed = run.data[b, h, plane]
                    for t in range(run.tokens):
                        stored = np.uint64(run.first + t)  # unsigned: no check for below zero
                        factor = weight * _scale(scales[stored, 0], run.fraction_bits)
                        sum0, sum1, sum2, sum3 = _ZERO, _ZERO, _ZERO, _ZERO
                        for place in range(places):
                            entry = entries[place, packed[stored, place]]
                            sum0 += entry[0]
                            sum1 += entry[1]
                            sum2 += entry[2]
                            sum3 += entry[3]
                        of_tokens[0, t] += sum0 * factor
                        of_tokens[1, t] += sum1 * factor
                        of_tokens[2, t] += sum2 * factor
                        of_tokens[3, t] += sum3 * factor
                    weight *= np.float32(3)


@compiled(
    *_RUN_RULES,
    run=_RUN,
    weights=Array(np.float32, "batch", "kv_heads", "quads", _LANES, "context"),
    tables=_TABLES,
)
def _scatter_weights(run, weights, tables):
    """Add a run of values to tables [batch, kv_heads, quads, places, 256, 4].

    Each plane of a token adds the token's softmax weight (weights [batch, kv_heads, quads, 4, T]),
    times the plane's weight and scale, to the entries of its bytes.
    """
    batch, heads, quads, places = tables.shape[:4]
    for b in range(batch):
        for h in range(heads):
            for quad in range(quads):
                entries = tables[b, h, quad]
                of_tokens = weights[b, h, quad, :, run.start : run.start + run.tokens]
                scales = run.words[b, h, run.scale]
                weight = np.float32(1)
                for plane in range(run.low, run.high):
                    packed = run.data[b, h, plane]
                    for t in range(run.tokens):
                        stored = np.uint64(run.first + t)  # unsigned: no check for below zero
                        factor = weight * _scale(scales[stored, 0], run.fraction_bits)
                        added0, added1 = of_tokens[0, t] * factor, of_tokens[1, t] * factor
                        added2, added3 = of_tokens[2, t] * factor, of_tokens[3, t] * factor
                        for place in range(places):
                            entry = entries[place, packed[stored, place]]
                            entry[0] += added0
                            entry[1] += added1
                            entry[2] += added2
                            entry[3] += added3
                    weight *= np.float32(3)


@compiled(
    "quads * 4 >= members",
    "dim <= places * digits",
    "groups == 3**digits",
    tables=_TABLES,
    digits=int,
    bytes_of_groups=Array(np.uint8, "groups"),
    outputs=Array(np.float64, "batch", "kv_heads", "members", 1, "dim", written=True),
)
def _empty_tables(tables, digits, bytes_of_groups, outputs):
    """Reduce tables [batch, kv_heads, quads, places, 256, 4] to the elements of outputs.

    Element k of ``outputs[b, h, g, 0]`` is the sum of ``tables[b, h, g // 4, k // digits, :,
    g % 4]``, each entry times trit ``k % digits`` of its byte.
    """
    batch, heads, group, _, dim = outputs.shape
    quads, places = tables.shape[2:4]
    groups = bytes_of_groups.shape[0]
    sums = np.empty((groups, _LANES), np.float32)
    elements = np.empty((places * digits, _LANES), np.float32)
    for b in range(batch):
        for h in range(heads):
            for quad in range(quads):
                for place in range(places):
                    entries = tables[b, h, quad, place]
                    for i in range(groups):
                        for g in range(_LANES):
                            sums[i, g] = entries[bytes_of_groups[i], g]
                    _split_groups(sums, elements[place * digits : (place + 1) * digits])
                for g in range(min(_LANES, group - quad * _LANES)):
                    for k in range(dim):
                        outputs[b, h, quad * _LANES + g, 0, k] = elements[k, g]


@loop_part
def _split_groups(sums, elements):
    """Fill elements [n, 4] with the sums [3**n, 4] of groups of n trits, weighted by the trits.

    Trits are processed from the lowest up. An element is the sum over groups with +1 minus the sum
    over groups with -1. The three groups that differ only in this trit are then added into one, so
    `sums` is overwritten.
    """
    count = sums.shape[0]
    for digit in range(elements.shape[0]):
        element = elements[digit]
        element[:] = 0
        count //= 3
        for i in range(count):
            for g in range(_LANES):
                minus, plus = sums[3 * i, g], sums[3 * i + 2, g]
                element[g] += plus - minus
                sums[i, g] = minus + sums[3 * i + 1, g] + plus


_ZERO = np.float32(0)


@loop_part
def _scale(word, fraction_bits):
    """Return the scale of a stored word, float32."""
    one = 1 << fraction_bits
    return np.float32((one + (word & (one - 1))) << (word >> fraction_bits))
