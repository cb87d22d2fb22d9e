"""A decode written down: what a host sends to the accelerator for chosen layers, and what golden
says must come back.

`DecodeRecorder` is a backend of a language model's session. It computes attention with the golden
model, and keeps the vectors of each decode step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from golden.attend.backends import GoldenBackend
from golden.cache.attention_job import AttentionJob, CachePass
from golden.cache.memory_image import MemoryImage
from golden.engine import Attention
from golden.tables import load_words
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout
from sim.backends.accelerator import store_layer, tables_of_layers

__all__ = ["Decode", "DecodeRecorder", "Head", "Job"]


class Head(NamedTuple):
    """A KV head: its code, and how its vectors are conditioned."""

    code: CacheCode
    rotate: bool
    centre: bool


@dataclass(frozen=True)
class Job:
    """A decode step of one KV head, and its expected outputs.

    head : index in `Decode.heads`
    tokens : of the context, the appended one included
    first : the hardware has seen no job of the head
    value_exponent : of the tokens that are in the memory before a first job
    query_exponent, sink_maximum, sink_weight : [G]
    vectors : int64 [2, D], the new key and value
    queries : int64 [G, D]
    outputs : int64 [G, D], of the golden model
    exponent : the true outputs are ``outputs * 2**exponent``
    """

    head: int
    tokens: int
    first: bool
    value_exponent: int
    query_exponent: list[int]
    sink_maximum: list[int]
    sink_weight: list[int]
    vectors: NDArray[np.int64]
    queries: NDArray[np.int64]
    outputs: NDArray[np.int64]
    exponent: int


@dataclass(frozen=True)
class Decode:
    """Decode steps of chosen layers.

    config : the accelerator's configuration
    heads : KV heads, layer by layer; a head's index is that of its tables
    tables : packets of words that load the heads' tables
    memory : the heads' regions before the first step, as `kvtq-hw layout` lays them out
    tokens : longest context
    batches : jobs of one layer and one token, which are started together
    """

    config: EngineConfig
    heads: list[Head]
    tables: list[list[int]]
    memory: NDArray[np.uint8]
    tokens: int
    batches: list[list[Job]]


@dataclass(frozen=True)
class _Start:
    """A layer before its first decode step.

    cache : the pass of the prefill, or where there was none that of the first step
    floors : value exponents of the heads
    stored : whether the prefill's tokens are in the memory
    """

    cache: CachePass
    floors: list[int]
    stored: bool


@dataclass
class DecodeRecorder:
    """Computes attention with the golden model and records the decode steps of chosen layers.

    layers : indices of the layers, ascending
    """

    layers: Sequence[int]
    _golden: GoldenBackend = field(default_factory=GoldenBackend)
    _starts: dict[int, _Start] = field(default_factory=dict)
    _batches: list[list[Job]] = field(default_factory=list)
    _begun: set[int] = field(default_factory=set)

    def attend(self, job: AttentionJob) -> Attention:
        """Compute a job with the golden model; record it if it is a chosen layer's decode step.

        Raises
        ------
        UserError
            For a code with anchors.
        ValueError
            When tokens come behind the first step in another way than one by one.
        """
        result = self._golden.attend(job)
        layer, cache = job.layer_index, job.cache
        if layer not in self.layers:
            return result
        if cache.code.tiers.anchors:
            raise UserError(f"code: {str(cache.code)!r} has anchors; must be a code without them")
        if job.is_decode_step:
            self._starts.setdefault(layer, _Start(cache, [0] * cache.kv_heads, False))
            self._batches.append(self._jobs(job, result))
            self._begun.add(layer)
        elif layer in self._begun:
            raise ValueError(f"layer {layer}: several tokens came behind the first decode step")
        else:
            self._starts[layer] = _Start(cache, job.value_exponent[0, :, -1].tolist(), True)
        return result

    def _jobs(self, job: AttentionJob, result: Attention) -> list[Job]:
        """Return the jobs of a layer's KV heads."""
        layer, cache, queries = job.layer_index, job.cache, job.host_queries
        none = [0] * cache.config.query_group
        first, place = layer not in self._begun, self.layers.index(layer)
        jobs = []
        for head in range(cache.kv_heads):
            sinks = None if job.learned_sinks is None else job.learned_sinks.of_kv_head(head)
            jobs.append(
                Job(
                    place * cache.kv_heads + head,
                    cache.tokens,
                    first,
                    self._starts[layer].floors[head] if first else 0,
                    queries.exponent[0, head, :, 0].tolist(),
                    none if sinks is None else sinks.maximum.tolist(),
                    none if sinks is None else sinks.weight.tolist(),
                    torch.stack([x[0, head, 0] for x in cache.vectors]).numpy(),
                    queries.values[0, head, :, 0].numpy(),
                    result.values[0, head, :, 0].numpy(),
                    int(result.exponent[0, head, 0]),
                )
            )
        return jobs

    def decode(self) -> Decode:
        """Return what was recorded.

        Raises
        ------
        UserError
            When a layer saw no decode step.
        """
        if missing := [layer for layer in self.layers if layer not in self._begun]:
            raise UserError(f"layer {missing[0]}: no decode step; must be at least one")
        starts = [self._starts[layer] for layer in self.layers]
        caches = [start.cache for start in starts]
        config, kv_heads = caches[0].config, caches[0].kv_heads
        tokens = max(job.tokens for batch in self._batches for job in batch)
        image = MemoryImage(MemoryLayout(config, [x.code for x in caches], kv_heads, tokens))
        for layer, start in enumerate(starts):
            if start.stored:
                cache = start.cache
                kept = cache.code.tiers.spread(cache.tokens).tokens
                store_layer(image, layer, cache.keys.newest(kept), cache.values.newest(kept))
        conditioning = [cache.conditioning for cache in caches]
        return Decode(
            config,
            [
                Head(
                    cache.code, cache.conditioning.rotate, cache.conditioning.key_centre is not None
                )
                for cache in caches
                for _ in range(kv_heads)
            ],
            list(load_words(config, *tables_of_layers(conditioning))),
            image.data.numpy(),
            tokens,
            self._batches,
        )
