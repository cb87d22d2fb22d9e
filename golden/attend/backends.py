"""Attention backends: the integer golden model, the float reference, and combinations.

A backend computes an `AttentionJob`, which is one layer's attention in one forward pass. The
hardware simulator is a backend too. `CheckedBackend` runs two backends and compares every output
bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from golden.attend import float_reference
from golden.cache.attention_job import AttentionBackend, AttentionJob
from golden.dequantizer import dequantize
from golden.engine import Attention, attend
from golden.output_rotator import output_rotator
from golden.planes import Planes
from golden.queries import Queries
from golden.tensors import write_tensors

__all__ = [
    "CheckedBackend",
    "FloatBackend",
    "GoldenBackend",
    "MeasuredBackend",
    "MismatchError",
    "SplitBackend",
    "rotated_back",
]

# Golden attention holds a few int64 tensors [batch, heads, queries, tokens, runs]. Where they would
# have more elements than this, queries are processed in pieces.
_CHUNK_ELEMENTS = 1 << 21


class IntegerBackend(Protocol):
    """A backend whose outputs are those of docs/contract.md, to the bit."""

    def attend(self, job: AttentionJob) -> Attention:
        """Return integer outputs with their exponents."""
        ...


class GoldenBackend:
    """Computes attention with the integer golden model."""

    def attend(self, job: AttentionJob) -> Attention:
        """Compute integer attention over the layer's planes, many queries in pieces."""
        config = job.cache.config
        keys, values = job.cache.keys.planes().merged(), job.cache.values.planes().merged()
        queries, visible = job.queries, job.visible
        other_keys, other_values = (
            (version.map(Planes.merged) for version in job.recent)
            if job.recent is not None
            else (None, None)
        )
        runs = max(keys.unit.shape[-1], values.unit.shape[-1])
        per_query = math.prod(queries.values.shape[:-2]) * keys.tokens * runs
        parts = []
        for piece, places in job.pieces(max(1, _CHUNK_ELEMENTS // per_query)):
            parts.append(
                attend(
                    config,
                    Queries(queries.values[..., piece, :], queries.exponent[..., piece]),
                    keys,
                    values,
                    None if visible is None else _per_head(visible[..., piece, :], keys.digits),
                    job.value_exponent[..., piece],
                    other_keys and other_keys.of_queries(piece),
                    other_values and other_values.of_queries(piece),
                    places,
                    learned_sinks=job.learned_sinks,
                )
            )
        return rotated_back(
            job,
            Attention(
                torch.cat([part.values for part in parts], -2),
                torch.cat([part.exponent for part in parts], -1),
                torch.stack([part.saturated for part in parts]).sum(),
            ),
        )


class FloatBackend:
    """Computes float64 attention over the dequantized planes, with unrounded queries."""

    def attend(self, job: AttentionJob) -> Tensor:
        """Compute float64 attention over the layer's planes."""
        config = job.cache.config

        def real(planes: Planes) -> Tensor:
            return dequantize(config, planes).double()

        outputs = float_reference.attend(
            job.real_queries,
            real(job.cache.keys.planes()),
            real(job.cache.values.planes()),
            job.visible,
            *(version.map(real) for version in job.recent or ()),
            sink_logits=job.sink_logits,
        )
        return job.cache.conditioning.rotated_back(outputs)


@dataclass(frozen=True)
class SplitBackend:
    """Uses one backend for decode steps and another for all other jobs (prefill, batches)."""

    prefill: AttentionBackend
    decode: AttentionBackend

    def attend(self, job: AttentionJob) -> Attention | Tensor:
        """Compute the job with the backend for its kind."""
        return (self.decode if job.is_decode_step else self.prefill).attend(job)


class MeasuredBackend:
    """Runs two backends on every job and measures the error of the second against the first.

    Attributes
    ----------
    largest_error : largest absolute difference of an output element, in the model's own units
    outputs_compared : number of output elements compared so far
    """

    def __init__(self, reference: AttentionBackend, measured: AttentionBackend) -> None:
        self._reference = reference
        self._measured = measured
        self.largest_error = 0.0
        self.outputs_compared = 0
        self._squared_error = 0.0
        self._squared_output = 0.0

    @property
    def relative_error(self) -> float:
        """Root mean square of the differences over that of the reference's outputs."""
        if self._squared_output == 0:
            return math.inf if self._squared_error else 0.0
        return math.sqrt(self._squared_error / self._squared_output)

    def attend(self, job: AttentionJob) -> Attention | Tensor:
        """Compute the job with both backends; return the reference's result."""
        result = self._reference.attend(job)
        real = job.cache.conditioning.real_outputs
        reference = real(to_float(result))
        difference = real(to_float(self._measured.attend(job))) - reference
        self.largest_error = max(self.largest_error, difference.abs().max().item())
        self.outputs_compared += difference.numel()
        self._squared_error += difference.square().sum().item()
        self._squared_output += reference.square().sum().item()
        return result


class MismatchError(Exception):
    """Raised when two backends differ that must agree to the bit; the inputs are saved."""


class CheckedBackend:
    """Runs a tested backend and a reference, and requires equality of every output bit.

    Parameters
    ----------
    reference, tested : the two backends; jobs return the result of `tested`
    folder : folder in which the inputs of a mismatch are saved

    Attributes
    ----------
    outputs_compared : number of output elements compared so far
    mismatches : number of output elements that differed
    """

    def __init__(self, reference: IntegerBackend, tested: IntegerBackend, folder: Path) -> None:
        self._reference = reference
        self._tested = tested
        self._folder = folder
        self.outputs_compared = 0
        self.mismatches = 0

    def attend(self, job: AttentionJob) -> Attention:
        """Compute the job with both backends; return the result of the tested backend.

        Raises
        ------
        MismatchError
            When the outputs differ. The message names layer, head, token and dimension of the first
            difference and the file with the inputs and both outputs.
        """
        expected = self._reference.attend(job)
        found = self._tested.attend(job)
        if found.values.shape != expected.values.shape:
            raise MismatchError(
                f"layer {job.layer_index}: outputs have shape {tuple(found.values.shape)}, "
                f"expected {tuple(expected.values.shape)}"
            )
        wrong = found.values != expected.values
        wrong |= (found.exponent != expected.exponent)[..., None, :, None]
        self.outputs_compared += wrong.numel()
        count = int(wrong.sum())
        if count:
            self.mismatches += count
            raise MismatchError(self._report(job, expected, found, wrong))
        return found

    def _report(
        self, job: AttentionJob, expected: Attention, found: Attention, wrong: Tensor
    ) -> str:
        """Save the job; return a message that locates the first difference."""
        index = tuple(wrong.nonzero()[0].tolist())
        sequence, kv_head, member, query, dimension = index
        group = wrong.shape[2]
        token = job.cache.tokens - wrong.shape[3] + query
        path = self._folder / f"mismatch-layer{job.layer_index}-token{token}.safetensors"
        save_job(path, job, expected, found)
        values = f"{int(found.values[index])} instead of {int(expected.values[index])}"
        exponents = (
            f"exponent {int(found.exponent[sequence, kv_head, query])} instead of "
            f"{int(expected.exponent[sequence, kv_head, query])}"
        )
        return (
            f"layer {job.layer_index}, query head {kv_head * group + member} (KV head {kv_head}), "
            f"token {token}, dimension {dimension}: {values}, {exponents}; "
            f"{int(wrong.sum())} of {wrong.numel()} outputs differ; inputs saved to {path}"
        )


def save_job(path: Path, job: AttentionJob, expected: Attention, found: Attention) -> None:
    """Save the inputs of a job, and two results, as a safetensors file.

    Tensors are named ``queries.values``, ``queries.exponent``, ``keys.digits``, ``keys.unit``,
    ``keys.fraction``, ``keys.exponent``, the same for ``values``, ``value_exponent``,
    ``expected.values``, ``expected.exponent``, ``found.values``, ``found.exponent``; ``visible``
    where not all tokens are visible; ``sink_maximum`` and ``sink_weight`` of a layer with learned
    sinks. The metadata hold the layer and the configuration.
    """
    tensors = {"queries.values": job.queries.values, "queries.exponent": job.queries.exponent}
    tensors["value_exponent"] = job.value_exponent
    for name, planes in (("keys", job.cache.keys.planes()), ("values", job.cache.values.planes())):
        for field in ("digits", "unit", "fraction", "exponent"):
            tensors[f"{name}.{field}"] = getattr(planes, field)
    for name, result in (("expected", expected), ("found", found)):
        tensors[f"{name}.values"] = result.values
        tensors[f"{name}.exponent"] = result.exponent
    if job.visible is not None:
        tensors["visible"] = job.visible
    if job.learned_sinks is not None:
        tensors["sink_maximum"] = job.learned_sinks.maximum
        tensors["sink_weight"] = job.learned_sinks.weight
    metadata = {"layer": str(job.layer_index), "config": job.cache.config.model_dump_json()}
    write_tensors(path, "inputs of the difference", tensors, metadata)


def rotated_back(job: AttentionJob, attention: Attention) -> Attention:
    """Rotate the engine's outputs back, as the hardware does before outputs leave it."""
    config, rotate = job.cache.config, job.cache.conditioning.rotate
    values, exponent = output_rotator(config, attention.values, attention.exponent, rotate)
    return Attention(values, exponent, attention.saturated)


def to_float(result: Attention | Tensor) -> Tensor:
    """Convert the outputs of any backend to float64."""
    return result if isinstance(result, Tensor) else result.to_float()


def _per_head(visible: Tensor, digits: Tensor) -> Tensor:
    """Expand [batch, 1, I, T] over the KV heads of planes [batch, kv_heads, T, P, D]."""
    return visible.expand(digits.shape[0], digits.shape[1], *visible.shape[-2:])
