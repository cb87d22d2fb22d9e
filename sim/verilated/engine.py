"""The verilated engine as a Python object: bit-true RTL at the speed of a compiled loop.

`VerilatedEngine` takes whole jobs and returns their outputs; `engine.cpp` plays the streams::

    with VerilatedEngine(config) as engine:
        outputs = engine.run([job]).outputs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from amaranth.hdl import ShapeLike
from numpy.typing import NDArray

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import (
    counters_layout,
    job_layout,
    key_input_layout,
    output_layout,
    query_layout,
    value_exponent_layout,
    value_input_layout,
)
from sim.verilated.design import SimulationError, VerilatedDesign
from sim.verilated.interface import EngineCall, stream
from sim.verilated.slices import SliceBuffer
from sim.verilated.words import pack_words, unpack_words, words_of

__all__ = ["EngineRun", "Job", "SimulationError", "Stalls", "VerilatedEngine"]

_INPUTS = ("job", "value_exponent", "query", "keys", "values")
_STREAMS = (*_INPUTS, "output")


@dataclass(frozen=True)
class Job:
    """One KV head's attention in one decode step.

    queries : int64 [G, D]
    query_exponent : int64 [G]
    value_exponent : at least the largest exponent of the value scales
    keys, values : slices of all tokens
    learned_sinks : `sink_maximum` and `sink_weight`, int64 [2, G]; no learned sinks when None
    """

    queries: NDArray[np.int64]
    query_exponent: NDArray[np.int64]
    value_exponent: int
    keys: SliceBuffer
    values: SliceBuffer
    learned_sinks: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Stalls:
    """Random stalls: the stall probability per cycle of each stream, and the seed."""

    seed: int
    job: float = 0.0
    value_exponent: float = 0.0
    query: float = 0.0
    keys: float = 0.0
    values: float = 0.0
    output: float = 0.0


@dataclass(frozen=True)
class EngineRun:
    """Results of the jobs of one call of `VerilatedEngine.run`.

    outputs : int64 [jobs, G, D]
    cycles : clock cycles with a job in flight
    counters : growth of each engine counter, by name
    """

    outputs: NDArray[np.int64]
    cycles: int
    counters: dict[str, int]


class VerilatedEngine(VerilatedDesign):
    """A simulated engine, which runs jobs back to back."""

    block = "engine"
    _before: Mapping[str, int] = dict.fromkeys(counters_layout().members, 0)

    def run(self, jobs: Sequence[Job], stalls: Stalls | None = None) -> EngineRun:
        """Run jobs back to back and return their outputs.

        Raises
        ------
        ValueError
            For a job without tokens, with more than `max_context` tokens, or with different
            numbers of keys and values.
        SimulationError
            When outputs are missing at the cycle limit, when the engine sent more outputs than the
            jobs have, or when inputs were not taken.
        """
        config = self.config
        for job in jobs:
            _check_job(config, job)
        words = _input_words(config, jobs)
        output = np.zeros((len(jobs) * config.head_dim, words_of(output_layout(config))), np.uint32)
        chances = [0.0 if stalls is None else getattr(stalls, name) for name in _STREAMS]
        slices = len(words["keys"]) + len(words["values"])
        overhead = 4 * config.head_dim + 16 * config.slices * config.rescale_steps + 1000
        slower = 1 + int(sum(1 / (1 - chance) for chance in chances)) if stalls else 1
        call = EngineCall(
            seed=stalls.seed if stalls else 0,
            cycle_limit=(2 * slices + len(jobs) * overhead) * slower,
        )
        for name, payloads, chance in zip(
            _STREAMS, [*words.values(), output], chances, strict=True
        ):
            setattr(call, name, stream(payloads, chance))
        self._run(call)

        counters = dict(zip(self._before, call.counters, strict=True))
        grown = {name: (now - self._before[name]) % 2**32 for name, now in counters.items()}
        self._before = counters
        return EngineRun(_outputs(config, output), grown["busy_cycles"], grown)


def _check_job(config: EngineConfig, job: Job) -> None:
    if job.keys.tokens != job.values.tokens:
        raise ValueError(
            f"job of {job.keys.tokens} keys and {job.values.tokens} values; must agree"
        )
    if not 1 <= job.keys.tokens <= config.max_context:
        raise ValueError(f"job of {job.keys.tokens} tokens; allowed are 1..{config.max_context}")


def _input_words(config: EngineConfig, jobs: Sequence[Job]) -> dict[str, NDArray[np.uint32]]:
    """Return the payloads of all jobs by input stream, uint32 [payloads, words]."""
    group, dim = config.query_group, config.head_dim
    queries = np.reshape([job.queries.T for job in jobs], (len(jobs) * dim, group))
    exponents = np.reshape([job.query_exponent for job in jobs], (len(jobs), group))
    none = np.zeros((2, group), np.int64)
    sinks = np.reshape(
        [none if job.learned_sinks is None else job.learned_sinks for job in jobs],
        (len(jobs), 2, group),
    )
    return {
        "job": pack_words(
            job_layout(config),
            {
                "last_token": [job.keys.tokens - 1 for job in jobs],
                "query_exponent": exponents,
                "sink_maximum": sinks[:, 0],
                "sink_weight": sinks[:, 1],
            },
        ),
        "value_exponent": pack_words(
            value_exponent_layout(config),
            {"value_exponent": [job.value_exponent for job in jobs]},
        ),
        "query": pack_words(query_layout(config), {"values": queries}),
        "keys": _joined(key_input_layout(config), [job.keys for job in jobs]),
        "values": _joined(value_input_layout(config), [job.values for job in jobs]),
    }


def _joined(layout: ShapeLike, buffers: Sequence[SliceBuffer]) -> NDArray[np.uint32]:
    """Join the slices of all buffers, in the order of the buffers."""
    none = np.zeros((0, words_of(layout)), np.uint32)
    return np.concatenate([none, *(buffer.words for buffer in buffers)])


def _outputs(config: EngineConfig, words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Unpack the output stream's payloads: outputs [jobs, G, D].

    Raises
    ------
    SimulationError
        When `last` does not mark exactly the last element of each job.
    """
    fields = unpack_words(output_layout(config), words)
    ends = np.flatnonzero(fields["last"]) + 1
    if not np.array_equal(ends, np.arange(1, len(words) // config.head_dim + 1) * config.head_dim):
        raise SimulationError("the outputs' `last` marks other elements than each job's last")
    values = fields["values"].reshape(-1, config.head_dim, config.query_group)
    return values.transpose(0, 2, 1)
