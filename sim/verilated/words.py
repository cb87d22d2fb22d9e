"""Conversion of stream payloads in bulk: NumPy arrays of fields to and from 32-bit words.

This module packs many payloads at once for verilated designs; `sim.bench.streams` packs single
payloads for benches. A payload of b bits takes ceil(b / 32) words, least significant first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data
from numpy.typing import NDArray

__all__ = ["pack_words", "unpack_words", "words_of"]


def words_of(shape: ShapeLike) -> int:
    """Return the number of 32-bit words per payload."""
    return -(-Shape.cast(shape).width // 32)


def pack_words(shape: ShapeLike, fields: Any) -> NDArray[np.uint32]:
    """Pack n payloads into uint32 [n, words].

    Parameters
    ----------
    shape : a layout or a plain shape
    fields : an array of integers [n, ...], with one axis per array layout; for a structure, a
        dictionary of its fields (inside an array layout, fields have that layout's axis too)
    """
    bits = _to_bits(shape, fields)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    padding = 4 * words_of(shape) - packed.shape[-1]
    return np.pad(packed, ((0, 0), (0, padding))).view("<u4")


def unpack_words(shape: ShapeLike, words: NDArray[np.uint32]) -> Any:
    """Unpack the words of `pack_words` into int64 arrays, signed where the shape is signed."""
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    return _from_bits(shape, bits)


def _to_bits(shape: ShapeLike, fields: Any) -> NDArray[np.uint8]:
    """Convert fields [...] to bits [..., width]."""
    layout = _layout(shape)
    if isinstance(layout, data.StructLayout):
        return np.concatenate(
            [_to_bits(field.shape, fields[name]) for name, field in layout], axis=-1
        )
    if isinstance(layout, data.ArrayLayout):
        bits = _to_bits(layout.elem_shape, fields)
        return bits.reshape(*bits.shape[:-2], -1)
    width = Shape.cast(shape).width
    if width == 1:
        return np.asarray(fields)[..., None].astype(np.uint8)
    values = np.asarray(fields).astype(np.int64)
    return ((values[..., None] >> np.arange(width)) & 1).astype(np.uint8)


def _from_bits(shape: ShapeLike, bits: NDArray[np.uint8]) -> Any:
    """Convert bits [..., at least width] to fields [...]."""
    layout = _layout(shape)
    if isinstance(layout, data.StructLayout):
        return {name: _from_bits(field.shape, bits[..., field.offset :]) for name, field in layout}
    width = Shape.cast(shape).width
    if isinstance(layout, data.ArrayLayout):
        elements = bits[..., :width].reshape(*bits.shape[:-1], layout.length, -1)
        return _from_bits(layout.elem_shape, elements)
    values = (bits[..., :width].astype(np.int64) << np.arange(width)).sum(-1)
    if Shape.cast(shape).signed:
        values -= bits[..., width - 1].astype(np.int64) << width
    return values


def _layout(shape: ShapeLike) -> data.Layout | None:
    """Return the layout behind a shape; None for plain shapes."""
    try:
        return data.Layout.cast(shape)
    except TypeError:
        return None
