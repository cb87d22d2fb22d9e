"""The verilated append path and the tables of one head, as a Python object.

It quantizes thousands of vectors in seconds. It checks the block's numbers and the cycles per
append; the block's bench checks its ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_uint32
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.feedback import Feedback
from golden.tables import factor_words
from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import (
    FACTOR_BITS,
    append_task_layout,
    byte_layout,
    coded_plane_layout,
    exponent_layout,
    vector_layout,
)
from sim.verilated.design import VerilatedDesign
from sim.verilated.interface import AppendPathCall, pointer, stream
from sim.verilated.words import pack_words, unpack_words, words_of

__all__ = ["AppendRun", "VerilatedAppendPath"]

_STREAMS = ("task", "vectors", "leaving", "records", "written")


@dataclass(frozen=True)
class AppendRun:
    """Outputs of the append path, and the cycles of all transfers.

    records : uint8 [bytes], the bytes of all records
    last : bool [bytes], the stream's `last` of each byte
    exponents : int64 [tasks]
    cycles : clock cycle of each transfer, by stream name
    """

    records: NDArray[np.uint8]
    last: NDArray[np.bool_]
    exponents: NDArray[np.int64]
    cycles: dict[str, NDArray[np.uint64]]


class VerilatedAppendPath(VerilatedDesign):
    """A simulated append path for one head; `table_heads` of the configuration must be 1.

    Raises
    ------
    ValueError
        For a configuration with tables for more than one head.
    """

    block = "append_path"

    def __init__(self, config: EngineConfig, *, cache: Path | None = None) -> None:
        if config.table_heads != 1:
            raise ValueError(f"table_heads: {config.table_heads} is not allowed; must be 1")
        super().__init__(config, cache=cache)

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
        record_bytes : number of bytes of all records
        feedback : feedback matrix of the head
        centre : int64 [D], centre of the head's keys
        stalls : stall probability per cycle of each stream: the inputs, records, written
        seed : seed of the random stalls

        Raises
        ------
        SimulationError
            When outputs are missing at the cycle limit, when there are too many outputs, or
            when inputs were not taken.
        """
        config = self.config
        words = [
            pack_words(append_task_layout(config), tasks),
            pack_words(vector_layout(), {"value": vectors}),
            pack_words(coded_plane_layout(config), leaving),
        ]
        rooms = ((byte_layout(), record_bytes), (exponent_layout(config), len(words[0])))
        words += [np.zeros((count, words_of(layout)), np.uint32) for layout, count in rooms]
        cycles = [np.zeros(len(payloads), np.uint64) for payloads in words]
        matrix = _matrix_words(factor_words(config, feedback.factors[0]).numpy().astype(np.uint64))
        shifts = feedback.shift[0].numpy().astype(np.uint32)
        centre_words = (centre & 0xFFFF).astype(np.uint32)
        slowest = 1 / (1 - max(stalls))
        call = AppendPathCall(
            factors=pointer(matrix, c_uint32),
            factor_words=matrix.shape[1],
            matrix_words=len(matrix),
            shifts=pointer(shifts, c_uint32),
            centre=pointer(centre_words, c_uint32),
            head_dim=config.head_dim,
            seed=seed,
            cycle_limit=int(slowest * len(words[0]) * (1000 + 20 * config.head_dim)),
        )
        for name, payloads, stall, when in zip(_STREAMS, words, stalls, cycles, strict=True):
            setattr(call, name, stream(payloads, stall, when))
        self._reset()
        self._run(call)
        records = unpack_words(byte_layout(), words[3])
        return AppendRun(
            records["data"].astype(np.uint8),
            records["last"].astype(bool),
            unpack_words(exponent_layout(config), words[4])["exponent"],
            dict(zip(_STREAMS, cycles, strict=True)),
        )


def _matrix_words(matrix: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Pack a matrix's memory words [words, lanes] for the port: uint32 [words, 32-bit words]."""
    bits = (matrix[..., None] >> np.arange(FACTOR_BITS, dtype=np.uint64) & 1).astype(np.uint8)
    packed = np.packbits(bits.reshape(len(matrix), -1), axis=-1, bitorder="little")
    padding = -packed.shape[-1] % 4
    return np.pad(packed, ((0, 0), (0, padding))).view("<u4")
