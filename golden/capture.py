"""Capture: the attention of chosen layers, KV heads and steps of a real decode, saved for replay.

A captured file holds one KV head's job as the engine's core takes it: queries, planes of keys and
values, the value exponent, and what the golden model makes of them, before outputs are rotated
back. All are integers; nothing else is needed to run the same attention in a simulator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from golden.backends import AttentionJob, GoldenBackend
from golden.engine import Attention, attend
from golden.planes import Planes
from golden.queries import Queries
from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError

__all__ = ["CaptureBackend", "Captured", "load_captured"]

_FIELDS = ("trits", "unit", "fraction", "exponent")


@dataclass(frozen=True)
class Captured:
    """One KV head's attention of one decode step.

    config : of the engine
    layer, head, step : where it comes from; step 0 is the first new token that is attended for
    queries : values [G, 1, D], exponent [G, 1]
    keys, values : Planes [T, P, D]
    key_depths, value_depths : planes of each token, int64 [T]
    value_exponent : the contract's
    expected : the golden core's outputs, int64 [G, D]
    """

    config: EngineConfig
    layer: int
    head: int
    step: int
    queries: Queries
    keys: Planes
    values: Planes
    key_depths: Tensor
    value_depths: Tensor
    value_exponent: int
    expected: Tensor

    def golden(self) -> Tensor:
        """The outputs, computed again: int64 [G, D]."""
        exponent = torch.tensor([self.value_exponent])
        found = attend(self.config, self.queries, self.keys, self.values, exponent=exponent)
        return found.values[:, 0]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        tensors = {
            "queries.values": self.queries.values,
            "queries.exponent": self.queries.exponent,
            "key_depths": self.key_depths,
            "value_depths": self.value_depths,
            "expected": self.expected,
        }
        for name, planes in (("keys", self.keys), ("values", self.values)):
            tensors |= {f"{name}.{field}": getattr(planes, field) for field in _FIELDS}
        place = {key: getattr(self, key) for key in ("layer", "head", "step", "value_exponent")}
        metadata = {"place": json.dumps(place), "config": self.config.model_dump_json()}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def load_captured(path: Path) -> Captured:
    """Read a file that `Captured.save` wrote.

    Raises
    ------
    UserError
        When it cannot be read, or is something else.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        keys, values = (
            Planes(*(tensors[f"{name}.{field}"] for field in _FIELDS))
            for name in ("keys", "values")
        )
        return Captured(
            config=EngineConfig.model_validate_json(metadata["config"]),
            **json.loads(metadata["place"]),
            queries=Queries(tensors["queries.values"], tensors["queries.exponent"]),
            keys=keys,
            values=values,
            key_depths=tensors["key_depths"],
            value_depths=tensors["value_depths"],
            expected=tensors["expected"],
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{str(path)!r} is no file of kvtq-hw capture: {error}") from None


@dataclass
class CaptureBackend:
    """The golden model, which keeps the decode steps that were asked for.

    layers, heads, steps : what to keep, of every combination
    captured : what has been kept, in the order in which it came
    """

    layers: Sequence[int]
    heads: Sequence[int]
    steps: Sequence[int]
    captured: list[Captured] = field(default_factory=list)
    _golden: GoldenBackend = field(default_factory=GoldenBackend)
    _seen: dict[int, int] = field(default_factory=dict)

    def attend(self, job: AttentionJob) -> Attention:
        """Compute the job; keep what was asked for of a decode step."""
        if job.is_decode_step:
            step = self._seen.get(job.layer_index, 0)
            self._seen[job.layer_index] = step + 1
            if job.layer_index in self.layers and step in self.steps:
                self.captured += [_captured(job, head, step) for head in self.heads]
        return self._golden.attend(job)


def _captured(job: AttentionJob, head: int, step: int) -> Captured:
    cache = job.cache
    keys, values = (
        Planes(*(getattr(planes, field)[0, head].clone() for field in _FIELDS))
        for planes in (cache.key_planes(), cache.value_planes())
    )
    queries = Queries(job.queries.values[0, head], job.queries.exponent[0, head])
    exponent = job.value_exponent[0, head]
    attention = attend(cache.config, queries, keys, values, exponent=exponent)
    return Captured(
        cache.config,
        job.layer_index,
        head,
        step,
        queries,
        keys,
        values,
        cache.keys.depths(),
        cache.values.depths(),
        int(exponent),
        attention.values[:, 0],
    )
