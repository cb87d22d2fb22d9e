"""The verilated engine as a Python object: bit-true RTL at the speed of a compiled loop.

Verilator's C++ model and the small C interface of `engine.cpp` are compiled into a shared
library, once a configuration and tool version, and called through ctypes with whole jobs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.folders import cache_folder
from rtl.layouts import (
    counters_layout,
    job_layout,
    key_input_layout,
    output_layout,
    query_layout,
    value_exponent_layout,
    value_input_layout,
)
from sim.verilated.library import SimulationError, build_library
from sim.verilated.slices import SliceBuffer
from sim.verilated.words import pack_words, unpack_words, words_of

__all__ = ["EngineRun", "Job", "SimulationError", "Stalls", "VerilatedEngine"]

_INPUTS = ("job", "value_exponent", "query", "keys", "values")


@dataclass(frozen=True)
class Job:
    """One KV head's attention in one decode step.

    queries : int64 [G, D]
    query_exponent : int64 [G]
    value_exponent : at least every exponent of the value scales
    keys, values : the slices of all tokens
    """

    queries: NDArray[np.int64]
    query_exponent: NDArray[np.int64]
    value_exponent: int
    keys: SliceBuffer
    values: SliceBuffer


@dataclass(frozen=True)
class Stalls:
    """Probability that a stream waits in a cycle, for each stream, and the seed that decides."""

    seed: int
    job: float = 0.0
    value_exponent: float = 0.0
    query: float = 0.0
    keys: float = 0.0
    values: float = 0.0
    output: float = 0.0


@dataclass(frozen=True)
class EngineRun:
    """What the engine did.

    outputs : int64 [jobs, G, D]
    cycles : clock cycles with a job in flight
    counters : growth of each of the engine's counters, by name
    """

    outputs: NDArray[np.int64]
    cycles: int
    counters: dict[str, int]


class _Segment(ctypes.Structure):
    _fields_ = (("words", ctypes.c_void_p), ("count", ctypes.c_uint64))


class _Run(ctypes.Structure):
    """Mirror of `Run` in engine.cpp."""

    _fields_ = (
        ("job", ctypes.POINTER(_Segment)),
        ("value_exponent", ctypes.POINTER(_Segment)),
        ("query", ctypes.POINTER(_Segment)),
        ("keys", ctypes.POINTER(_Segment)),
        ("values", ctypes.POINTER(_Segment)),
        ("segments", ctypes.c_uint64),
        ("words", ctypes.c_uint32 * 6),
        ("output", ctypes.c_void_p),
        ("output_count", ctypes.c_uint64),
        ("cycle_limit", ctypes.c_uint64),
        ("stall", ctypes.c_uint32 * 6),
        ("seed", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("unsent", ctypes.c_uint64),
        ("counters", ctypes.c_uint32 * 6),
    )


class VerilatedEngine:
    """A simulated engine that keeps its state, clock and counters between runs.

    Parameters
    ----------
    config : EngineConfig
    waves : Path, optional
        Record every signal into this VCD file, until `close`.
    cache : Path, optional
        Where builds are kept; a user cache folder by default.

    Raises
    ------
    kvtq_hw.contract.errors.UserError
        When Verilator is not installed.
    SimulationError
        When the engine does not build.
    """

    def __init__(
        self, config: EngineConfig, *, waves: Path | None = None, cache: Path | None = None
    ) -> None:
        self.config = config
        folder = cache_folder() if cache is None else cache
        self._library = _load(
            build_library("engine", config, waves is not None, folder / "verilated")
        )
        self._shapes = (
            job_layout(config),
            value_exponent_layout(config),
            query_layout(config),
            key_input_layout(config),
            value_input_layout(config),
            output_layout(config),
        )
        self._counters = np.zeros(6, np.uint32)
        self._simulation = self._library.kvtq_open(None if waves is None else bytes(waves))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation; waves are complete after this."""
        if self._simulation is not None:
            self._library.kvtq_close(self._simulation)
            self._simulation = None

    def run(self, jobs: Sequence[Job], stalls: Stalls | None = None) -> EngineRun:
        """Run jobs back to back and return their outputs.

        Raises
        ------
        ValueError
            For a job without tokens, over `max_context`, or whose keys and values differ in number.
        SimulationError
            When outputs are missing at the cycle limit, or when the engine sent more than it owes.
        """
        config = self.config
        for job in jobs:
            if job.keys.tokens != job.values.tokens:
                raise ValueError(
                    f"job of {job.keys.tokens} keys and {job.values.tokens} values; must agree"
                )
            if not 1 <= job.keys.tokens <= config.max_context:
                raise ValueError(
                    f"job of {job.keys.tokens} tokens; allowed are 1..{config.max_context}"
                )
        inputs = (
            [_job_words(config, job) for job in jobs],
            [_exponent_words(config, job) for job in jobs],
            [pack_words(query_layout(config), {"values": job.queries.T}) for job in jobs],
            [job.keys.words for job in jobs],
            [job.values.words for job in jobs],
        )
        output = np.zeros((len(jobs) * config.head_dim, words_of(self._shapes[5])), np.uint32)
        slices = sum(len(stream) for stream in (*inputs[3], *inputs[4]))
        overhead = 4 * config.head_dim + 16 * config.slices * config.rescale_steps + 1000
        run = _Run(
            segments=len(jobs),
            words=(ctypes.c_uint32 * 6)(*map(words_of, self._shapes)),
            output=output.ctypes.data,
            output_count=len(output),
            cycle_limit=2 * slices + len(jobs) * overhead,
        )
        for name, stream in zip(_INPUTS, inputs, strict=True):
            setattr(run, name, _segments(stream))
        if stalls is not None:
            chances = [getattr(stalls, name) for name in (*_INPUTS, "output")]
            run.stall = (ctypes.c_uint32 * 6)(*(round(256 * chance) for chance in chances))
            run.seed = stalls.seed
            run.cycle_limit *= 1 + int(sum(1 / (1 - chance) for chance in chances))
        self._library.kvtq_run(self._simulation, ctypes.byref(run))

        owed = f"{len(output)} outputs of {len(jobs)} jobs"
        if run.received < len(output):
            raise SimulationError(
                f"the engine hangs: {run.received} of {owed} after {run.cycles} cycles, "
                f"{run.unsent} inputs not taken"
            )
        if run.received > len(output) or run.unsent:
            raise SimulationError(
                f"{owed} were due, {run.received} came, and {run.unsent} inputs were not taken"
            )
        counters = np.array(run.counters, np.uint32)
        grown = counters - self._counters  # modulo 2**32, as the counters wrap
        self._counters = counters
        names = [name for name, _ in counters_layout()]
        by_name = dict(zip(names, map(int, grown), strict=True))
        fields = unpack_words(self._shapes[5], output)
        if not np.array_equal(
            np.flatnonzero(fields["last"]) + 1, config.head_dim * np.arange(1, len(jobs) + 1)
        ):
            raise SimulationError("the outputs' `last` marks other elements than each job's last")
        values = fields["values"].reshape(len(jobs), config.head_dim, config.query_group)
        return EngineRun(values.transpose(0, 2, 1), by_name["busy_cycles"], by_name)


def _job_words(config: EngineConfig, job: Job) -> NDArray[np.uint32]:
    """The payload of the `job` stream."""
    return pack_words(
        job_layout(config),
        {
            "last_token": [job.keys.tokens - 1],
            "query_exponent": job.query_exponent[None],
        },
    )


def _exponent_words(config: EngineConfig, job: Job) -> NDArray[np.uint32]:
    """The payload of the `value_exponent` stream."""
    return pack_words(value_exponent_layout(config), {"value_exponent": [job.value_exponent]})


def _segments(streams: Sequence[NDArray[np.uint32]]) -> ctypes.Array[_Segment]:
    """Pointers into packed payloads, which the caller keeps alive."""
    return (_Segment * len(streams))(*(_Segment(s.ctypes.data, len(s)) for s in streams))


def _load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.kvtq_open.argtypes = [ctypes.c_char_p]
    loaded.kvtq_open.restype = ctypes.c_void_p
    loaded.kvtq_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Run)]
    loaded.kvtq_run.restype = None
    loaded.kvtq_close.argtypes = [ctypes.c_void_p]
    loaded.kvtq_close.restype = None
    return loaded
