"""Capture: saves the attention of chosen layers, KV heads and steps of a real decode for replay.

A captured file holds one KV head's job in the form that the engine takes: queries, planes of keys
and values, the value exponent, and the golden model's outputs before they are rotated back. All are
integers. A simulator needs nothing else to run the same attention. The vectors that the quantizer
made the planes from are in the file as well, so that other formats can be made from the same
vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from golden.attend.backends import GoldenBackend
from golden.cache.attention_job import AttentionJob
from golden.engine import Attention, attend
from golden.learned_sinks import LearnedSinks, no_learned_sinks
from golden.planes import Planes
from golden.queries import Queries
from golden.tensors import Expected, read_metadata, read_tensors, write_tensors
from kvtq_hw.contract.codes import MAX_LAYERS
from kvtq_hw.contract.config import ConfigError, EngineConfig, config_from_fields
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import Schema, parse_json, validated

__all__ = ["CaptureBackend", "Captured", "load_captured"]

_WHAT = "captured attention"
_FORMAT = "kvtq-hw capture 2"
_FIELDS = ("digits", "unit", "fraction", "exponent")


@dataclass(frozen=True)
class Captured:
    """One KV head's attention of one decode step.

    config : configuration of the engine
    layer, head, step : origin of the attention; step 0 is the first decode step
    queries : values [G, 1, D], exponent [G, 1]
    keys, values : Planes [T, P, D]
    key_vectors, value_vectors : the same tokens before they were first quantized, conditioned as
        the quantizer takes them, int32 [T, D]
    key_depths, value_depths : number of planes of each token, int64 [T]
    value_exponent : the contract's `value_exponent`
    learned_sinks : [G]
    expected : outputs of the golden engine, int64 [G, D]
    """

    config: EngineConfig
    layer: int
    head: int
    step: int
    queries: Queries
    keys: Planes
    values: Planes
    key_vectors: Tensor
    value_vectors: Tensor
    key_depths: Tensor
    value_depths: Tensor
    value_exponent: int
    learned_sinks: LearnedSinks
    expected: Tensor

    def golden(self) -> Tensor:
        """Compute the outputs again with the golden engine: int64 [G, D]."""
        exponent = torch.tensor([self.value_exponent])
        found = attend(
            self.config,
            self.queries,
            self.keys,
            self.values,
            exponent=exponent,
            learned_sinks=self.learned_sinks,
        )
        return found.values[:, 0]

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; raise `UserError` on failure."""
        tensors = {
            "queries.values": self.queries.values,
            "queries.exponent": self.queries.exponent,
            "key_vectors": self.key_vectors,
            "value_vectors": self.value_vectors,
            "key_depths": self.key_depths,
            "value_depths": self.value_depths,
            "sink_maximum": self.learned_sinks.maximum,
            "sink_weight": self.learned_sinks.weight,
            "expected": self.expected,
        }
        for name, planes in (("keys", self.keys), ("values", self.values)):
            tensors |= {f"{name}.{field}": getattr(planes, field) for field in _FIELDS}
        place = {key: getattr(self, key) for key in ("layer", "head", "step", "value_exponent")}
        metadata = {
            "format": _FORMAT,
            "place": json.dumps(place),
            "config": self.config.model_dump_json(),
        }
        write_tensors(path, _WHAT, tensors, metadata)


class _Place(Schema):
    """The origin of a job, as stored in the file's header."""

    model_config = ConfigDict(extra="forbid")

    layer: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    head: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    step: Annotated[int, Field(ge=0, le=1 << 31)]
    value_exponent: Annotated[int, Field(ge=0, le=31)]


def load_captured(path: Path) -> Captured:
    """Read a file that `Captured.save` wrote.

    Raises
    ------
    UserError
        When the file cannot be read, is no captured attention, or holds a job that is invalid for
        an engine of its configuration.
    """
    place = f"{_WHAT} {str(path)!r}"
    metadata = read_metadata(path, _WHAT)
    if not {"config", "place"} <= set(metadata):
        raise UserError(f"{place}: not written by kvtq-hw capture")
    if metadata.get("format") != _FORMAT:
        raise UserError(
            f"{place}: not a {_FORMAT} file, which has the vectors from before rounding; capture "
            "again"
        )
    try:
        fields, about = (parse_json(metadata[name]) for name in ("config", "place"))
        config = config_from_fields(fields)
        tensors = read_tensors(path, _WHAT, _expected(config))
        keys, values = (
            Planes(*(tensors[f"{name}.{field}"] for field in _FIELDS))
            for name in ("keys", "values")
        )
        captured = Captured(
            config=config,
            **validated(_Place, about, place).model_dump(),
            queries=Queries(tensors["queries.values"], tensors["queries.exponent"]),
            keys=keys,
            values=values,
            key_vectors=tensors["key_vectors"],
            value_vectors=tensors["value_vectors"],
            key_depths=tensors["key_depths"],
            value_depths=tensors["value_depths"],
            learned_sinks=LearnedSinks(tensors["sink_maximum"], tensors["sink_weight"]),
            expected=tensors["expected"],
        )
        _check(captured)
    except ConfigError as error:
        raise UserError(f"{place}: config: {error}") from None
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    return captured


def _expected(config: EngineConfig) -> dict[str, Expected]:
    """Return the tensors that a job's file must have: G query heads, T tokens, P planes."""
    group, dim = config.query_group, config.head_dim
    exponent, maximum = 1 << (config.query_exponent_bits - 1), 1 << (config.maximum_bits - 1)
    depths = Expected(torch.int64, ("T",), 1, config.max_planes)
    vectors = Expected(torch.int32, ("T", dim), -config.conditioned_max, config.conditioned_max)
    found = {
        "queries.values": Expected(
            torch.int64, (group, 1, dim), -config.query_max, config.query_max
        ),
        "queries.exponent": Expected(torch.int64, (group, 1), -exponent, exponent - 1),
        "key_vectors": vectors,
        "value_vectors": vectors,
        "key_depths": depths,
        "value_depths": depths,
        "sink_maximum": Expected(torch.int64, (group,), -maximum, maximum - 1),
        "sink_weight": Expected(torch.int64, (group,), 0, (1 << config.weight_width) - 1),
        "expected": Expected(torch.int64, (group, dim), -(1 << 40), 1 << 40),
    }
    element = (config.element_min, config.element_max)
    for name in ("keys", "values"):
        planes = ("T", f"planes of {name}")
        found |= {
            f"{name}.digits": Expected(torch.int8, (*planes, dim), *element),
            f"{name}.unit": Expected(torch.bool, planes),
            f"{name}.fraction": Expected(
                torch.int64, planes, 0, (1 << config.scale_fraction_bits) - 1
            ),
            f"{name}.exponent": Expected(
                torch.int64, planes, 0, (1 << config.scale_exponent_bits) - 1
            ),
        }
    return found


def _check(captured: Captured) -> None:
    """Raise `ValueError` when tensors do not fit each other, though each is well formed."""
    config = captured.config
    if len(captured.key_depths) > config.max_context:
        raise ValueError(
            f"{len(captured.key_depths)} tokens are more than max_context {config.max_context}"
        )
    for name, planes, depths in (
        ("keys", captured.keys, captured.key_depths),
        ("values", captured.values, captured.value_depths),
    ):
        places = planes.unit.shape[-1]
        if places > config.max_planes:
            raise ValueError(
                f"{name}: {places} planes are more than max_planes {config.max_planes}"
            )
        if int(depths.max()) > places:
            raise ValueError(f"{name}: a token has {int(depths.max())} planes of {places}")
        absent = torch.arange(places) >= depths[:, None]
        if not planes.unit[:, 0].all():
            raise ValueError(f"{name}.unit: plane 0 of a token does not open a run")
        if (absent & planes.unit).any() or (absent[..., None] & (planes.digits != 0)).any():
            raise ValueError(f"{name}: a token has more planes than its depth says")
    largest = int(torch.where(captured.values.unit, captured.values.exponent, 0).max())
    if captured.value_exponent < largest:
        raise ValueError(
            f"value_exponent: {captured.value_exponent} is not allowed; must be at least "
            f"{largest}, the largest exponent of the values' scales"
        )


@dataclass
class CaptureBackend:
    """Computes attention with the golden model and keeps chosen decode steps.

    layers, heads, steps : which jobs to keep: all combinations
    captured : the kept jobs, in the order of computation

    The backend must see every pass of a chosen layer, since the cache keeps no unrounded vectors.
    """

    layers: Sequence[int]
    heads: Sequence[int]
    steps: Sequence[int]
    captured: list[Captured] = field(default_factory=list)
    _golden: GoldenBackend = field(default_factory=GoldenBackend)
    _seen: dict[int, int] = field(default_factory=dict)
    _vectors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, job: AttentionJob) -> Attention:
        """Compute the job; if it is a chosen decode step, keep the chosen KV heads.

        Raises
        ------
        ValueError
            When tokens of a chosen layer came in a pass that the backend has not seen.
        """
        layer = job.layer_index
        if layer in self.layers:
            self._vectors[layer] = _with_newest(self._vectors.get(layer), job)
        if job.is_decode_step:
            step = self._seen.get(layer, 0)
            self._seen[layer] = step + 1
            if layer in self.layers and step in self.steps:
                vectors = self._vectors[layer]
                self.captured += [_captured(job, head, step, *vectors) for head in self.heads]
        return self._golden.attend(job)


def _with_newest(earlier: tuple[Tensor, Tensor] | None, job: AttentionJob) -> tuple[Tensor, Tensor]:
    """Return conditioned keys and values of a context with those of its newest tokens.

    Parameters
    ----------
    earlier : vectors [batch, kv_heads, tokens, D] up to an earlier pass; those of tokens that were
        removed since are dropped
    """
    cache = job.cache
    before, condition = cache.tokens - cache.new_tokens, cache.conditioning
    known = 0 if earlier is None else earlier[0].shape[-2]
    if known < before:
        raise ValueError(
            f"layer {job.layer_index}: {before - known} tokens came in passes that were not "
            "computed by this backend; it must compute all passes"
        )
    keys, values = cache.vectors
    new = condition.rotated(condition.centred(keys)), condition.rotated(values)
    if earlier is None or not before:
        return new
    return (
        torch.cat((earlier[0][..., :before, :], new[0]), -2),
        torch.cat((earlier[1][..., :before, :], new[1]), -2),
    )


def _captured(job: AttentionJob, head: int, step: int, *vectors: Tensor) -> Captured:
    cache = job.cache
    (keys, key_depths), (values, value_depths) = (
        _of_head(*view.in_order(cache.code.tiers), head) for view in (cache.keys, cache.values)
    )
    stored = [x[0, head, cache.keys.forgotten :].int() for x in vectors]
    order = cache.keys.order(cache.code.tiers)
    key_vectors, value_vectors = stored if order is None else [x[order[0, head]] for x in stored]
    queries = Queries(job.queries.values[0, head], job.queries.exponent[0, head])
    exponent = job.value_exponent[0, head]
    sinks = job.learned_sinks
    of_head = no_learned_sinks(cache.config) if sinks is None else sinks.of_kv_head(head)
    attention = attend(
        cache.config, queries, keys, values, exponent=exponent, learned_sinks=of_head
    )
    return Captured(
        cache.config,
        job.layer_index,
        head,
        step,
        queries,
        keys,
        values,
        key_vectors,
        value_vectors,
        key_depths,
        value_depths,
        int(exponent),
        of_head,
        attention.values[:, 0],
    )


def _of_head(planes: Planes, depths: Tensor, head: int) -> tuple[Planes, Tensor]:
    """Return the planes of one KV head of sequence 0, and their numbers of planes."""
    return planes.map_tokens(lambda x, axis: x[0, head].clone()), depths[0, head].clone()
