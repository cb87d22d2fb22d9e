"""Packing of planes into the slices of the engine's `keys` and `values` streams."""

from __future__ import annotations

import numpy as np
from amaranth.lib import data
from numpy.typing import NDArray

from golden.planes import Planes
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side
from rtl.layouts import key_input_layout, value_input_layout
from sim.verilated.words import pack_words, words_of

__all__ = ["SliceBuffer", "pack_slices", "planes_together"]


class SliceBuffer:
    """An append-only sequence of packed plane slices: one KV head's keys or values.

    Slices are packed once, when their token arrives, and are not moved within the buffer. Capacity
    doubles when the buffer is full.

    Parameters
    ----------
    config : EngineConfig
    side : a key sends the most significant plane of a run first, a value the unit plane
    """

    def __init__(self, config: EngineConfig, side: Side) -> None:
        if side not in ("key", "value"):
            raise ValueError(f"side must be 'key' or 'value', not {side!r}")
        self._config = config
        self._side = side
        self._buffer = np.zeros((64, words_of(_layout(config, side))), np.uint32)
        self._ends: list[int] = []

    @property
    def tokens(self) -> int:
        """Return the number of vectors in the buffer."""
        return len(self._ends)

    @property
    def words(self) -> NDArray[np.uint32]:
        """Return all slices in stream order, uint32 [slices, words]."""
        return self._buffer[: self._ends[-1] if self._ends else 0]

    def block_slices(self) -> list[int]:
        """Return slices per block of tokens, as `cycle_model.job_cycles` takes them."""
        ends = [0, *self._ends[self._config.block - 1 :: self._config.block]]
        if self.tokens % self._config.block:
            ends.append(self._ends[-1])
        return np.diff(ends).tolist()

    def clear(self) -> None:
        """Remove all vectors."""
        self.truncate(0)

    def truncate(self, tokens: int) -> None:
        """Keep only the first `tokens` vectors."""
        del self._ends[tokens:]

    def append(self, planes: Planes, counts: NDArray[np.int64] | None = None) -> None:
        """Pack vectors with `pack_slices` and append them."""
        self.extend(*pack_slices(self._config, self._side, planes, counts))

    def extend(self, words: NDArray[np.uint32], slices: NDArray[np.int64]) -> None:
        """Append packed vectors: their words, and the number of slices of each vector."""
        start = len(self.words)
        needed = start + len(words)
        if needed > len(self._buffer):
            grown = np.zeros((max(needed, 2 * len(self._buffer)), words.shape[1]), np.uint32)
            grown[:start] = self._buffer[:start]
            self._buffer = grown
        self._buffer[start:needed] = words
        self._ends += (start + np.cumsum(slices)).tolist()


def pack_slices(
    config: EngineConfig, side: Side, planes: Planes, counts: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Pack vectors as slices in stream order.

    Parameters
    ----------
    planes : Planes without batch axes, digits [n, P, D]
    counts : number of planes to send per vector, [n]; all P when None

    Returns
    -------
    words : uint32 [slices, words], and the number of slices of each vector : int64 [n]
    """
    digits = planes.digits.numpy()
    count, depth, dim = digits.shape
    if dim != config.head_dim:
        raise ValueError(f"digits have {dim} elements, must be head_dim = {config.head_dim}")
    if depth > config.max_planes:
        raise ValueError(f"digits have {depth} planes, at most max_planes = {config.max_planes}")
    sent = np.full(count, depth) if counts is None else np.asarray(counts)
    per_slice = config.key_planes_per_cycle if side == "key" else config.value_planes_per_cycle
    digits, unit, first, sent = planes_together(digits, planes.unit.numpy(), sent, per_slice)
    depth = unit.shape[1]
    position = np.arange(depth)
    absent = position >= sent[:, None]

    within = -position if side == "key" else position
    run = np.cumsum(unit, axis=-1)
    order = np.argsort(run * 2 * depth + within + absent * 4 * depth * depth, axis=-1)

    def arrange(field: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a field's entries for the planes sent, in stream order, repeated per slice."""
        rows = np.take_along_axis(field, order, axis=-1)[~absent]
        return rows.repeat(config.slices)

    def scale(field: NDArray[np.int64]) -> NDArray[np.generic]:
        return arrange(np.where(unit, np.take_along_axis(field, first, axis=-1), 0))

    ordered = np.take_along_axis(digits, order[..., None, None], axis=1)[~absent]
    sliced = ordered.reshape(-1, per_slice, config.slices, config.lanes).swapaxes(1, 2)
    lanes = sliced.reshape(-1, per_slice * config.lanes)
    elements = {"nonzero": lanes != 0, "negative": lanes < 0} if config.is_ternary else lanes
    words = pack_words(
        _layout(config, side),
        {
            "elements": elements,
            "fraction": scale(planes.fraction.numpy()),
            "exponent": scale(planes.exponent.numpy()),
            "unit": arrange(unit),
            "last": (position == sent[:, None] - 1)[~absent].repeat(config.slices),
        },
    )
    return words, sent * config.slices


def planes_together(
    digits: NDArray[np.int8], unit: NDArray[np.bool_], counts: NDArray[np.int64], planes: int
) -> tuple[NDArray[np.int8], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Group up to `planes` planes of one run, as one slice holds them.

    Parameters
    ----------
    digits, unit : [n, P, D] and [n, P], the unit plane of a run first
    counts : [n], number of planes per vector

    Returns
    -------
    digits [n, Q, planes, D], zero where the run has no further plane; unit [n, Q]; the index of the
    first plane of each group [n, Q]; the number of groups per vector [n]
    """
    vectors, depth, dim = digits.shape
    index = np.arange(depth)
    place = (index - np.maximum.accumulate(np.where(unit, index, 0), axis=1)) % planes
    present = index < counts[:, None]
    opens = present & (place == 0)
    number = np.cumsum(opens, axis=1) - 1
    sent = opens.sum(1)
    most = int(sent.max(initial=1))
    found = np.zeros((vectors, most, planes, dim), digits.dtype)
    row, plane = np.nonzero(present)
    found[row, number[row, plane], place[row, plane]] = digits[row, plane]
    first = np.zeros((vectors, most), np.int64)
    row, plane = np.nonzero(opens)
    first[row, number[row, plane]] = plane
    is_unit = np.take_along_axis(unit, first, 1) & (np.arange(most) < sent[:, None])
    return found, is_unit, first, sent


def _layout(config: EngineConfig, side: Side) -> data.StructLayout:
    return key_input_layout(config) if side == "key" else value_input_layout(config)
