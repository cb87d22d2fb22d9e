"""The verilated append path as a Python object, with the tables of one head.

Thousands of vectors in seconds: the bench of the block is for its ports, this is for its numbers,
and for the cycles that an append takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.feedback import Feedback
from golden.tables import factor_words
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.folders import cache_folder
from rtl.layouts import (
    FACTOR_BITS,
    append_task_layout,
    byte_layout,
    coded_plane_layout,
    exponent_layout,
    vector_layout,
)
from sim.verilated.library import SimulationError, build_library
from sim.verilated.words import pack_words, unpack_words, words_of

__all__ = ["AppendRun", "VerilatedAppendPath"]

_INPUTS = ("task", "vectors", "leaving")


@dataclass(frozen=True)
class AppendRun:
    """What came out, and when.

    records : uint8 [bytes], of all records
    last : bool [bytes], what the stream said of each byte
    exponents : int64 [tasks]
    cycles : clock cycle of each transfer of each stream, by its name
    """

    records: NDArray[np.uint8]
    last: NDArray[np.bool_]
    exponents: NDArray[np.int64]
    cycles: dict[str, NDArray[np.uint64]]


class _Stream(ctypes.Structure):
    """Mirror of `Stream` in append_path.cpp."""

    _fields_ = (
        ("payloads", ctypes.c_void_p),
        ("words", ctypes.c_uint32),
        ("stall", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("cycles", ctypes.c_void_p),
    )


class _Run(ctypes.Structure):
    """Mirror of `Run` in append_path.cpp."""

    _fields_ = (
        *((name, _Stream) for name in (*_INPUTS, "records", "written")),
        ("factors", ctypes.c_void_p),
        ("factor_words", ctypes.c_uint32),
        ("matrix_words", ctypes.c_uint32),
        ("shifts", ctypes.c_void_p),
        ("centre", ctypes.c_void_p),
        ("head_dim", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("cycle_limit", ctypes.c_uint64),
        ("cycles", ctypes.c_uint64),
    )


class VerilatedAppendPath:
    """A simulated append path for one head.

    Parameters
    ----------
    config : EngineConfig
        With one table: `table_heads` is 1.
    cache : Path, optional
        Where builds are kept; a user cache folder by default.

    Raises
    ------
    ValueError
        For a configuration with more tables.
    kvtq_hw.contract.errors.UserError
        When Verilator is not installed.
    SimulationError
        When the design does not build.
    """

    def __init__(self, config: EngineConfig, cache: Path | None = None) -> None:
        if config.table_heads != 1:
            raise ValueError(f"table_heads: {config.table_heads} is not allowed; must be 1")
        self.config = config
        folder = cache_folder() if cache is None else cache
        library = build_library("append_path", config, False, folder / "verilated")
        self._library = ctypes.CDLL(str(library))
        self._library.kvtq_open.restype = ctypes.c_void_p
        self._library.kvtq_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Run)]
        self._library.kvtq_close.argtypes = [ctypes.c_void_p]

    def run(
        self,
        tasks: dict[str, Any],
        vectors: NDArray[np.int64],
        leaving: dict[str, Any],
        record_bytes: int,
        *,
        feedback: Feedback,
        centre: NDArray[np.int64],
        stalls: Sequence[float] = (0, 0, 0, 0, 0),
        seed: int = 0,
    ) -> AppendRun:
        """Run tasks back to back, from reset.

        Parameters
        ----------
        tasks : fields of `append_task_layout`, arrays [tasks]
        vectors : elements of all new vectors, in order
        leaving : fields of `coded_plane_layout`, arrays of all leaving planes, in order
        record_bytes : bytes of all records
        feedback : of one head
        centre : int64 [D]
        stalls : probability that a stream waits in a cycle: the inputs, records, written
        seed : decides where

        Raises
        ------
        SimulationError
            When outputs are missing at the cycle limit, or more came, or inputs were not taken.
        """
        config = self.config
        shapes = (append_task_layout(config), vector_layout(), coded_plane_layout(config))
        fields = (tasks, {"value": vectors}, leaving)
        words = [pack_words(shape, field) for shape, field in zip(shapes, fields, strict=True)]
        count = len(words[0])
        outputs = (byte_layout(), exponent_layout(config))
        words += [
            np.zeros((room, words_of(shape)), np.uint32)
            for room, shape in zip((record_bytes, count), outputs, strict=True)
        ]
        cycles = [np.zeros(len(stream), np.uint64) for stream in words]
        matrix = factor_words(config, feedback.factors[0]).numpy().astype(np.uint64)
        matrix_words = _matrix_words(matrix)
        shifts = feedback.shift[0].numpy().astype(np.uint32)
        centre_words = (centre & 0xFFFF).astype(np.uint32)
        slowest = 1 / (1 - max(stalls))
        run = _Run(
            factors=matrix_words.ctypes.data,
            factor_words=matrix_words.shape[1],
            matrix_words=len(matrix_words),
            shifts=shifts.ctypes.data,
            centre=centre_words.ctypes.data,
            head_dim=config.head_dim,
            seed=seed,
            cycle_limit=int(slowest * count * (1000 + 20 * config.head_dim)),
        )
        for name, stream, when, stall in zip(
            (*_INPUTS, "records", "written"), words, cycles, stalls, strict=True
        ):
            setattr(
                run,
                name,
                _Stream(
                    payloads=stream.ctypes.data,
                    words=stream.shape[1],
                    stall=round(256 * stall),
                    count=len(stream),
                    cycles=when.ctypes.data,
                ),
            )
        simulation = self._library.kvtq_open()
        self._library.kvtq_run(simulation, ctypes.byref(run))
        self._library.kvtq_close(simulation)
        for name, stream in zip((*_INPUTS, "records", "written"), words, strict=True):
            done = getattr(run, name).done
            if done != len(stream):
                raise SimulationError(
                    f"{name}: {done} of {len(stream)} payloads after {run.cycles} cycles"
                )
        data = unpack_words(outputs[0], words[3])
        exponents = unpack_words(outputs[1], words[4])["exponent"]
        names = (*_INPUTS, "records", "written")
        return AppendRun(
            data["data"].astype(np.uint8),
            data["last"].astype(bool),
            exponents,
            dict(zip(names, cycles, strict=True)),
        )


def _matrix_words(matrix: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Memory words [words, lanes] as the port takes them: uint32 [words, 32-bit words]."""
    bits = (matrix[..., None] >> np.arange(FACTOR_BITS, dtype=np.uint64) & 1).astype(np.uint8)
    packed = np.packbits(bits.reshape(len(matrix), -1), axis=-1, bitorder="little")
    padding = -packed.shape[-1] % 4
    return np.pad(packed, ((0, 0), (0, padding))).view("<u4")
