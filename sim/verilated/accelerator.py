"""The verilated accelerator with its memory, as a Python object: whole jobs in a compiled loop.

Verilator's C++ model, a model of the memory behind AXI, and a program of register accesses run in
one loop (`accelerator.cpp`). What goes in and out is what a host sees: words in registers,
vectors, and the memory's bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.contract.registers import JobStatus, register_map
from rtl.control import control_counters_layout
from sim.host.driver import Driver
from sim.verilated.library import SimulationError, build_library

__all__ = [
    "DDR4",
    "IDEAL",
    "LPDDR4",
    "AcceleratorJob",
    "AcceleratorRun",
    "MemorySettings",
    "VerilatedAccelerator",
]

_WRITE, _READ, _AWAIT, _AWAIT_OTHER = range(4)  # kinds of access in accelerator.cpp
_ALL = 0xFFFFFFFF


@dataclass(frozen=True)
class MemorySettings:
    """How fast the memory is, in cycles of the accelerator's clock.

    latency : from a burst's address to its first word, or to a write's response
    words_per_cycle : words of the memory port that may move, reads and writes together, at most 1
    refresh_interval, refresh_cycles : every so many cycles nothing moves for so long; 0 is never
    outstanding : bursts that it takes ahead
    """

    latency: int = 100
    words_per_cycle: float = 1.0
    refresh_interval: int = 0
    refresh_cycles: int = 0
    outstanding: int = 32


#: One word a cycle, 100 cycles of latency.
IDEAL = MemorySettings()

#: Like DDR4-3200 behind a controller, at an accelerator clock of 500 MHz: 60 ns to the first word,
#: refresh of 350 ns every 7.8 us. The bus is faster than a 256-bit port.
DDR4 = MemorySettings(latency=30, refresh_interval=3900, refresh_cycles=175)

#: Like LPDDR4-3200 with 32 bits, the same clock and a 256-bit port: 100 ns, 280 ns every 3.9 us.
LPDDR4 = MemorySettings(latency=50, words_per_cycle=0.8, refresh_interval=1950, refresh_cycles=140)


@dataclass(frozen=True)
class AcceleratorJob:
    """One job.

    descriptor : as `sim.host.driver.descriptor_words` takes it
    vectors : int64 [2, D], the new key and value of a job that appends
    queries : int64 [G, D] of a job that attends
    """

    descriptor: Mapping[str, Any]
    vectors: NDArray[np.int64] | None = None
    queries: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class AcceleratorRun:
    """What the accelerator did.

    outputs : int64 [jobs that attend, G, D]
    exponents : int64 [jobs that attend], true outputs are ``outputs * 2**exponent``
    cycles : clock cycles from the first register access to the last output
    counters : growth of each counter, by register name
    """

    outputs: NDArray[np.int64]
    exponents: NDArray[np.int64]
    cycles: int
    counters: dict[str, int]


class _Memory(ctypes.Structure):
    """Mirror of `Memory` in accelerator.cpp."""

    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("latency", ctypes.c_uint32),
        ("words_in_256", ctypes.c_uint32),
        ("refresh_interval", ctypes.c_uint32),
        ("refresh_cycles", ctypes.c_uint32),
        ("outstanding", ctypes.c_uint32),
    )


class _Packets(ctypes.Structure):
    _fields_ = (("words", ctypes.c_void_p), ("last", ctypes.c_void_p), ("beats", ctypes.c_uint64))


class _Run(ctypes.Structure):
    """Mirror of `Run` in accelerator.cpp."""

    _fields_ = (
        ("accesses", ctypes.c_void_p),
        ("access_count", ctypes.c_uint64),
        ("key_value", _Packets),
        ("query", _Packets),
        ("table", _Packets),
        ("output", ctypes.c_void_p),
        ("output_last", ctypes.c_void_p),
        ("output_user", ctypes.c_void_p),
        ("output_beats", ctypes.c_uint64),
        ("cycle_limit", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("unsent", ctypes.c_uint64),
    )


class VerilatedAccelerator:
    """A simulated accelerator that keeps its state, clock and counters between runs.

    Parameters
    ----------
    config : EngineConfig
    memory : uint8 [n], the memory's bytes, which the accelerator reads and writes in place
    base : address of the first of them, a multiple of the memory word
    settings : how fast it is
    waves : record every signal into this VCD file, until `close`
    cache : where builds are kept; a user cache folder by default

    Raises
    ------
    kvtq_hw.contract.errors.UserError
        When Verilator is not installed.
    SimulationError
        When the accelerator does not build.
    """

    def __init__(
        self,
        config: EngineConfig,
        memory: NDArray[np.uint8],
        *,
        base: int = 0,
        settings: MemorySettings = IDEAL,
        waves: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        if memory.dtype != np.uint8 or memory.ndim != 1 or not memory.flags.c_contiguous:
            raise TypeError("memory must be a contiguous array of uint8 with one axis")
        self.config = config
        self.memory = memory
        folder = cache_folder() if cache is None else cache
        library = build_library("accelerator", config, waves is not None, folder / "verilated")
        self._library = _load(library)
        self._memory = _Memory(
            bytes=memory.ctypes.data,
            base=base,
            size=len(memory),
            latency=settings.latency,
            words_in_256=round(256 * settings.words_per_cycle),
            refresh_interval=settings.refresh_interval,
            refresh_cycles=settings.refresh_cycles,
            outstanding=settings.outstanding,
        )
        self._driver = Driver(config)
        self._counters = dict.fromkeys(control_counters_layout().members, 0)
        self._completed = 0
        self._simulation = self._library.kvtq_open(
            None if waves is None else bytes(waves), config.memory_bits // 8
        )

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

    def load_tables(self, sections: Sequence[NDArray[np.uint32]]) -> None:
        """Send sections of `rtl.tables`, each with its header word in front, as packets."""
        table = np.concatenate(list(sections))
        ends = np.cumsum([len(section) for section in sections]) - 1
        last = np.zeros(len(table), np.uint8)
        last[ends] = 1
        none = _Stream.empty(1)
        self._go([], _Stream(table[:, None], last), none, none, 0, len(table))

    def run(self, jobs: Sequence[AcceleratorJob]) -> AcceleratorRun:
        """Run jobs back to back.

        Raises
        ------
        SimulationError
            When outputs are missing at the cycle limit, when the accelerator sent more than it
            owes, or when a job ended with another status than OK.
        """
        config = self.config
        program = []
        for job in jobs:
            program.append(_access("status", _AWAIT_OTHER, 0, mask=_field_mask("status", "free")))
            program += [(_WRITE, at, word, 0) for at, word in self._driver.start(job.descriptor)]
        self._completed = (self._completed + len(jobs)) & _ALL
        program.append(_access("completed", _AWAIT, self._completed))
        reads = ["interrupt", "first_error", *self._counters]
        program += [_access(name, _READ) for name in reads]

        pairs = [job.vectors for job in jobs if job.vectors is not None]
        queries = [job.queries for job in jobs if job.queries is not None]
        work = sum(self._most_cycles(job) for job in jobs)
        run, outputs = self._go(
            program,
            _Stream.empty(1),
            _Stream.of(config, pairs, 1),
            _Stream.of(config, queries, -(-config.query_group // 2)),
            len(queries) * config.head_dim,
            work,
        )
        words = dict(zip(reads, run.read, strict=True))
        if register_map()["interrupt"].unpack(words["interrupt"])["error"]:
            error = register_map()["first_error"].unpack(words["first_error"])
            raise SimulationError(
                f"job {error['job']} ended with status {JobStatus(error['status']).name}"
            )
        grown = {name: (words[name] - before) & _ALL for name, before in self._counters.items()}
        self._counters = {name: words[name] for name in self._counters}
        shape = len(queries), config.head_dim, config.query_group
        exponents = outputs.user.reshape(shape[:2])
        if not (exponents == exponents[:, :1]).all():
            raise SimulationError("the exponent changes within a job's outputs")
        last = np.flatnonzero(outputs.last) + 1
        if not np.array_equal(last, config.head_dim * np.arange(1, len(queries) + 1)):
            raise SimulationError("TLAST marks other elements than each job's last")
        values = outputs.words.view(np.int32).astype(np.int64).reshape(shape)
        return AcceleratorRun(
            values.transpose(0, 2, 1), exponents[:, 0].astype(np.int64), run.cycles, grown
        )

    def _most_cycles(self, job: AcceleratorJob) -> int:
        """Cycles in which a job ends, or never will."""
        config, memory = self.config, self._memory
        tokens = int(job.descriptor["tokens"])
        planes = 2 * tokens * config.max_planes
        moved = planes * (2 + 8 * config.head_dim // config.memory_bits)
        slowest = 256 / memory.words_in_256 + memory.latency / 16
        return int(2 * planes * config.slices + moved * slowest) + 100 * config.head_dim + 20000

    def _go(
        self,
        program: Sequence[tuple[int, int, int, int]],
        table: _Stream,
        pairs: _Stream,
        queries: _Stream,
        beats: int,
        work: int,
    ) -> tuple[_Done, _Outputs]:
        """Let the simulation run until everything is done; what it read, and what came out."""
        accesses = np.array(program, np.uint32).reshape(-1, 4)
        outputs = _Outputs(
            np.zeros((beats, self.config.query_group), np.uint32),
            np.zeros(beats, np.uint8),
            np.zeros(beats, np.int8),
        )
        run = _Run(
            accesses=accesses.ctypes.data,
            access_count=len(accesses),
            key_value=pairs.packets(),
            query=queries.packets(),
            table=table.packets(),
            output=outputs.words.ctypes.data,
            output_last=outputs.last.ctypes.data,
            output_user=outputs.user.ctypes.data,
            output_beats=beats,
            cycle_limit=1000 + 8 * len(accesses) + 2 * work,
        )
        self._library.kvtq_run(self._simulation, ctypes.byref(self._memory), ctypes.byref(run))
        if run.received != beats or run.unsent:
            raise SimulationError(
                f"{beats} outputs were due and {run.received} came in {run.cycles} cycles; "
                f"{run.unsent} beats and register accesses were not taken"
            )
        read = [int(data) for kind, _, data, _ in accesses if kind == _READ]
        return _Done(run.cycles, read), outputs


@dataclass(frozen=True)
class _Done:
    """Cycles of a run, and the words that its program read."""

    cycles: int
    read: list[int]


@dataclass(frozen=True)
class _Outputs:
    """Beats of the output stream."""

    words: NDArray[np.uint32]
    last: NDArray[np.uint8]
    user: NDArray[np.int8]


@dataclass(frozen=True)
class _Stream:
    """Beats of an input stream: uint32 [beats, words] and TLAST."""

    words: NDArray[np.uint32]
    last: NDArray[np.uint8]

    @classmethod
    def empty(cls, words: int) -> Self:
        """No beats."""
        return cls(np.zeros((0, words), np.uint32), np.zeros(0, np.uint8))

    @classmethod
    def of(cls, config: EngineConfig, vectors: Sequence[NDArray[np.int64]], words: int) -> Self:
        """Element d of every vector of a job is a beat, 16 bits each: [vectors, D] a job."""
        if not vectors:
            return cls.empty(words)
        elements = np.stack(vectors).transpose(0, 2, 1).astype(np.int16)
        padding = 2 * words - elements.shape[-1]
        padded = np.pad(elements, ((0, 0), (0, 0), (0, padding)))
        last = np.zeros(elements.shape[:2], np.uint8)
        last[:, -1] = 1
        packed = np.ascontiguousarray(padded).view(np.uint32).reshape(-1, words)
        return cls(packed, last.reshape(-1))

    def packets(self) -> _Packets:
        """Pointers, valid as long as this object."""
        return _Packets(self.words.ctypes.data, self.last.ctypes.data, len(self.words))


def _access(name: str, kind: int, data: int = 0, mask: int = _ALL) -> tuple[int, int, int, int]:
    return kind, register_map()[name].address, data, mask


def _field_mask(register: str, field: str) -> int:
    return next(f.mask for f in register_map()[register].fields if f.name == field)


def _load(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.kvtq_open.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
    loaded.kvtq_open.restype = ctypes.c_void_p
    loaded.kvtq_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Memory), ctypes.POINTER(_Run)]
    loaded.kvtq_run.restype = None
    loaded.kvtq_close.argtypes = [ctypes.c_void_p]
    loaded.kvtq_close.restype = None
    return loaded
