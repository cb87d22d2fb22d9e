"""The verilated accelerator and its memory as a Python object: jobs run in a compiled loop.

Verilator's C++ model, a model of the memory behind AXI, and a program of register accesses run in
one loop (`accelerator.cpp`). The interface is that of a host: register words, vectors, and the
memory's bytes::

    with VerilatedAccelerator(config, memory) as accelerator:
        accelerator.load_tables(sections)
        outputs = accelerator.run([AcceleratorJob(descriptor, vectors, queries)]).outputs

Software that makes its own register accesses takes the place of `run`::

        accelerator.arm([AcceleratorJob({}, vectors, queries)])
        accelerator.access(AccessKind.WRITE, address, word)
        outputs, exponents = accelerator.collect()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref, c_uint8
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import JobStatus, register_map
from rtl.control import control_counters_layout
from sim.host.driver import Driver
from sim.verilated.design import SimulationError, VerilatedDesign
from sim.verilated.interface import (
    UNIT,
    AcceleratorCall,
    Access,
    AccessKind,
    Memory,
    Program,
    packets,
    pointer,
    units,
)

__all__ = [
    "DDR4",
    "IDEAL",
    "LPDDR4",
    "AcceleratorJob",
    "AcceleratorRun",
    "MemorySettings",
    "VerilatedAccelerator",
]

_ALL = 0xFFFFFFFF

#: Cycles from one register access of software to the next, in which streams move.
_ACCESS_CYCLES = 100


@dataclass(frozen=True)
class MemorySettings:
    """Timing of the memory, in cycles of the accelerator's clock.

    latency : cycles from a burst's address to its first word, or from a write to its response
    words_per_cycle : words per cycle of the memory port, reads and writes together, at most 1
    refresh_interval : cycles between the starts of two refreshes; 0: no refresh
    refresh_cycles : cycles of a refresh, in which no word moves
    outstanding : bursts that the memory accepts ahead
    """

    latency: int = 100
    words_per_cycle: float = 1.0
    refresh_interval: int = 0
    refresh_cycles: int = 0
    outstanding: int = 32


#: One word per cycle, 100 cycles of latency.
IDEAL = MemorySettings()

#: Similar to DDR4-3200 behind a controller, at an accelerator clock of 500 MHz: 60 ns to the first
#: word, a refresh of 350 ns every 7.8 us. The DDR4 bus is faster than a 256-bit port.
DDR4 = MemorySettings(latency=30, refresh_interval=3900, refresh_cycles=175)

#: Similar to 32-bit LPDDR4-3200, with the same clock and a 256-bit port: 100 ns to the first word,
#: a refresh of 280 ns every 3.9 us.
LPDDR4 = MemorySettings(latency=50, words_per_cycle=0.8, refresh_interval=1950, refresh_cycles=140)


@dataclass(frozen=True)
class AcceleratorJob:
    """One job of the accelerator: an append, an attention, or both.

    descriptor : the job's fields, as `sim.host.driver.descriptor_words` takes them
    vectors : int64 [2, D], the new key and value, for a job that appends
    queries : int64 [G, D], for a job that attends
    """

    descriptor: Mapping[str, Any]
    vectors: NDArray[np.int64] | None = None
    queries: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class AcceleratorRun:
    """Results of the jobs of one call of `VerilatedAccelerator.run`.

    outputs : int64 [jobs that attend, G, D]
    exponents : int64 [jobs that attend]; the true outputs are ``outputs * 2**exponent``
    cycles : clock cycles from the first register access to the last output
    counters : growth of each counter, by register name
    """

    outputs: NDArray[np.int64]
    exponents: NDArray[np.int64]
    cycles: int
    counters: dict[str, int]


class VerilatedAccelerator(VerilatedDesign):
    """A simulated accelerator and its memory.

    Parameters
    ----------
    config, waves, cache, quick : as `VerilatedDesign` takes them
    memory : uint8 [n], the memory's bytes, which the accelerator reads and writes in place
    base : address of the memory's first byte, a multiple of the memory word
    settings : timing of the memory

    Raises
    ------
    TypeError
        When `memory` is not a uint8 [n] array.
    """

    block = "accelerator"

    def __init__(
        self,
        config: EngineConfig,
        memory: NDArray[np.uint8],
        *,
        base: int = 0,
        settings: MemorySettings = IDEAL,
        waves: Path | None = None,
        cache: Path | None = None,
        quick: bool = False,
    ) -> None:
        if memory.dtype != np.uint8 or memory.ndim != 1 or not memory.flags.c_contiguous:
            raise TypeError("memory must be a contiguous array of uint8 with one axis")
        super().__init__(config, waves=waves, cache=cache, quick=quick)
        self.memory = memory
        self._memory = Memory(
            bytes=pointer(memory, c_uint8),
            base=base,
            size=len(memory),
            latency=settings.latency,
            words_per_cycle=units(settings.words_per_cycle),
            refresh_interval=settings.refresh_interval,
            refresh_cycles=settings.refresh_cycles,
            outstanding=settings.outstanding,
        )
        self._driver = Driver(config)
        self._counters = dict.fromkeys(control_counters_layout().members, 0)
        self._completed = 0
        self._armed: _Armed | None = None

    def load_tables(self, sections: Sequence[NDArray[np.uint32]]) -> None:
        """Send sections of `rtl.tables` as packets, each section behind its header word."""
        table = np.concatenate(list(sections))
        ends = np.cumsum([len(section) for section in sections]) - 1
        last = np.zeros(len(table), np.uint8)
        last[ends] = 1
        self._go([], {"table": _Beats(table[:, None], last)}, beats=0, work=len(table))

    def run(self, jobs: Sequence[AcceleratorJob]) -> AcceleratorRun:
        """Run jobs back to back.

        Raises
        ------
        SimulationError
            When outputs are missing at the cycle limit, when the accelerator sent more outputs
            than the jobs have, or when a job ended with another status than OK.
        """
        self._completed = (self._completed + len(jobs)) & _ALL
        results = ["interrupt", "first_error", *self._counters]
        done = self._go(
            self._program(jobs, results),
            _inputs(jobs),
            beats=self._beats(jobs),
            work=sum(self._most_cycles(job) for job in jobs),
        )
        words = dict(zip(results, done.read, strict=True))
        if register_map()["interrupt"].unpack(words["interrupt"])["error"]:
            error = register_map()["first_error"].unpack(words["first_error"])
            raise SimulationError(
                f"job {error['job']} ended with status {JobStatus(error['status']).name}"
            )
        grown = {name: (words[name] - before) & _ALL for name, before in self._counters.items()}
        self._counters = {name: words[name] for name in self._counters}
        return AcceleratorRun(*self._attention(done.output), done.cycles, grown)

    def arm(self, jobs: Sequence[AcceleratorJob]) -> None:
        """Offer the vectors of jobs, and room for their outputs, in each `access` until `collect`.

        Descriptors do not count: the accesses describe and start the jobs. Jobs that were armed
        before, and failed, are dropped.
        """
        inputs, output = _inputs(jobs), self._room(self._beats(jobs))
        call = AcceleratorCall(memory=self._memory, output=packets(*output))
        for name, stream in inputs.items():
            setattr(call, name, packets(stream.words, stream.last))
        self._armed = _Armed(call, inputs, output)

    def access(self, kind: AccessKind, address: int, data: int = 0) -> int:
        """Perform a register access and return the word that it wrote or read.

        Streams of armed jobs move meanwhile, and the access takes as many cycles as software needs.

        Raises
        ------
        SimulationError
            When the access is not answered.
        """
        self._check_open()
        call = AcceleratorCall(memory=self._memory) if self._armed is None else self._armed.call
        accesses = np.array([(kind, address, data, _ALL)], Access)
        call.registers = Program(pointer(accesses, Access), 1)
        call.cycle_limit = _ACCESS_CYCLES
        self._library.kvtq_run(self._simulation, byref(call))
        if not call.registers.done:
            raise SimulationError(f"the access to register {address:#x} is not answered")
        return int(accesses["data"][0])

    def collect(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return outputs and exponents of the armed jobs, as `AcceleratorRun` has them.

        Raises
        ------
        SimulationError
            When vectors have not been taken, or outputs are missing or too many.
        ValueError
            When no jobs are armed.
        """
        armed, self._armed = self._armed, None
        if armed is None:
            raise ValueError("no jobs are armed; arm jobs first")
        armed.call.registers = Program()
        armed.call.cycle_limit = 10 * _ACCESS_CYCLES
        self._run(armed.call)
        return self._attention(armed.output)

    def _beats(self, jobs: Sequence[AcceleratorJob]) -> int:
        """Return the number of output beats of jobs."""
        return sum(job.queries is not None for job in jobs) * self.config.head_dim

    def _room(self, beats: int) -> _Output:
        """Return room for `beats` output beats."""
        words = np.zeros((beats, self.config.query_group), np.uint32)
        return _Output(words, np.zeros(beats, np.uint8), np.zeros(beats, np.int8))

    def _attention(self, output: _Output) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return outputs [jobs, G, D] and exponents [jobs] of output beats.

        Raises
        ------
        SimulationError
            When TLAST or TUSER are not as the output stream must have them.
        """
        dim, group = self.config.head_dim, self.config.query_group
        exponents = output.exponents.reshape(-1, dim)
        if not (exponents == exponents[:, :1]).all():
            raise SimulationError("the exponent changes within a job's outputs")
        if not np.array_equal(
            np.flatnonzero(output.last), np.arange(dim - 1, len(output.last), dim)
        ):
            raise SimulationError("TLAST marks other elements than each job's last")
        values = output.words.view(np.int32).astype(np.int64).reshape(-1, dim, group)
        return values.transpose(0, 2, 1), exponents[:, 0].astype(np.int64)

    def _program(self, jobs: Sequence[AcceleratorJob], results: Sequence[str]) -> list[_Row]:
        """Return the accesses of a run.

        They start each job once the queue has room, await the end of the last, and read `results`.
        """
        program = []
        for job in jobs:
            free = _field_mask("status", "free")
            program.append(_access("status", AccessKind.AWAIT_OTHER, 0, mask=free))
            program += [
                (AccessKind.WRITE, address, word, 0)
                for address, word in self._driver.start(job.descriptor)
            ]
        program.append(_access("completed", AccessKind.AWAIT, self._completed))
        return program + [_access(name, AccessKind.READ) for name in results]

    def _most_cycles(self, job: AcceleratorJob) -> int:
        """Return the cycle limit of a job: a job that takes longer hangs."""
        config, memory = self.config, self._memory
        tokens = int(job.descriptor["tokens"])
        planes = 2 * tokens * config.max_planes
        moved = planes * (2 + 8 * config.head_dim // config.memory_bits)
        slowest = UNIT / memory.words_per_cycle + memory.latency / 16
        return int(2 * planes * config.slices + moved * slowest) + 100 * config.head_dim + 20000

    def _go(
        self, program: Sequence[_Row], inputs: Mapping[str, _Beats], *, beats: int, work: int
    ) -> _Done:
        """Run the simulation until accesses, inputs and `beats` output beats are done."""
        accesses = np.array(program, Access)
        output = self._room(beats)
        call = AcceleratorCall(
            memory=self._memory,
            registers=Program(pointer(accesses, Access), len(accesses)),
            output=packets(*output),
            cycle_limit=1000 + 8 * len(accesses) + 2 * work,
        )
        for name, stream in inputs.items():
            setattr(call, name, packets(stream.words, stream.last))
        self._run(call)
        read = accesses["data"][accesses["kind"] == AccessKind.READ]
        return _Done(call.cycles, read.tolist(), output)


#: A row of an array of `Access`.
_Row = tuple[int, int, int, int]


class _Beats(NamedTuple):
    """Beats of an input stream: words, uint32 [beats, words], and TLAST of each beat."""

    words: NDArray[np.uint32]
    last: NDArray[np.uint8]


class _Output(NamedTuple):
    """Output beats: words, uint32 [beats, words], TLAST and TUSER (the exponent) of each."""

    words: NDArray[np.uint32]
    last: NDArray[np.uint8]
    exponents: NDArray[np.int8]


class _Done(NamedTuple):
    """Results of a call: its cycles, the words that its program read, and the output beats."""

    cycles: int
    read: list[int]
    output: _Output


class _Armed(NamedTuple):
    """Jobs under way: a call that goes on with each access, and the arrays that it points to."""

    call: AcceleratorCall
    inputs: Mapping[str, _Beats]
    output: _Output


def _inputs(jobs: Sequence[AcceleratorJob]) -> dict[str, _Beats]:
    """Return the beats of the vectors that jobs take, by stream."""
    vectors = {
        "key_value": [job.vectors for job in jobs if job.vectors is not None],
        "query": [job.queries for job in jobs if job.queries is not None],
    }
    return {name: _packed(some) for name, some in vectors.items() if some}


def _packed(vectors: Sequence[NDArray[np.int64]]) -> _Beats:
    """Pack packets of vectors [vectors, D]: a beat holds one 16-bit element of each vector."""
    elements = np.stack(vectors).transpose(0, 2, 1).astype(np.int16)
    padded = np.pad(elements, ((0, 0), (0, 0), (0, elements.shape[-1] % 2)))
    last = np.zeros(elements.shape[:2], np.uint8)
    last[:, -1] = 1
    words = np.ascontiguousarray(padded).view(np.uint32)
    return _Beats(words.reshape(last.size, -1), last.reshape(-1))


def _access(name: str, kind: AccessKind, data: int = 0, mask: int = _ALL) -> _Row:
    return kind, register_map()[name].address, data, mask


def _field_mask(register: str, field: str) -> int:
    return next(f.mask for f in register_map()[register].fields if f.name == field)
