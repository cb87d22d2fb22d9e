"""Comparison of a stream's payloads with expected payloads.

The payloads must be equal in every bit, none may be missing or extra, and there must be at least
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from amaranth.hdl import Shape, ShapeLike

from sim.bench.streams import Payload, layout_of, packer, unpack

__all__ = ["Mismatch", "Scoreboard", "compared_bits"]


class Mismatch(AssertionError):
    """Raised when an output differs from the expected one; the message names index and field."""


class Scoreboard:
    """Expected payloads of one output stream.

    Parameters
    ----------
    name : str
        Name of the stream in messages.
    shape : ShapeLike
        Payload shape; messages name the fields of a layout.
    expected : sequence of payloads
        Payloads in order, as `sim.bench.streams.packer` takes them. Fields missing in a mapping are
        not compared.
    """

    def __init__(self, name: str, shape: ShapeLike, expected: Sequence[Payload]) -> None:
        self.name = name
        self._shape = shape
        compare = compared_bits(shape)
        bits = [compare(payload) for payload in expected]
        self._expected = [value for value, _ in bits]
        self._compared_bits = [mask for _, mask in bits]
        self.compared = 0

    def __len__(self) -> int:
        return len(self._expected)

    @property
    def complete(self) -> bool:
        """Return whether every expected payload came."""
        return self.compared == len(self)

    def compare(self, received: Sequence[int]) -> None:
        """Compare the packed payloads received so far; raise `Mismatch` at a difference."""
        for index in range(self.compared, len(received)):
            if index == len(self._expected):
                extra = unpack(self._shape, received[index])
                raise Mismatch(
                    f"{self.name}: {len(received)} payloads came, {len(self)} were expected; "
                    f"the first extra one is {extra!r}"
                )
            if (received[index] ^ self._expected[index]) & self._compared_bits[index]:
                raise Mismatch(f"{self.name}[{index}]{self._difference(index, received[index])}")
            self.compared += 1

    def finish(self, received: Sequence[int]) -> None:
        """Compare all payloads; raise `Mismatch` also if one is missing or none was expected."""
        self.compare(received)
        if not self.complete:
            raise Mismatch(f"{self.name}: {self.compared} of {len(self)} expected payloads came")
        if not self.compared:
            raise Mismatch(f"{self.name}: nothing was compared")

    def _difference(self, index: int, bits: int) -> str:
        """Return the first field that differs, with both values."""
        mask = self._compared_bits[index]
        got = dict(_leaves(unpack(self._shape, bits & mask)))
        want = dict(_leaves(unpack(self._shape, self._expected[index] & mask)))
        path = next(path for path in got if got[path] != want[path])
        return f"{path} is {got[path]}, expected {want[path]}"


def compared_bits(shape: ShapeLike) -> Callable[[Payload], tuple[int, int]]:
    """Return a function that packs a payload and returns its bits and the mask of compared bits."""
    pack, mask = packer(shape), _masker(shape)
    return lambda payload: (pack(payload), mask(payload))


def _masker(shape: ShapeLike) -> Callable[[Payload], int]:
    """Return a function to the mask of a payload's given bits: all but those of missing fields."""
    layout, everything = layout_of(shape), (1 << Shape.cast(shape).width) - 1
    if layout is None:
        return lambda payload: everything
    fields = {key: (_masker(field.shape), field.offset) for key, field in layout}

    def mask(payload: Payload) -> int:
        if isinstance(payload, int | Enum):
            return everything
        parts = payload.items() if isinstance(payload, Mapping) else enumerate(payload)
        return sum(fields[key][0](part) << fields[key][1] for key, part in parts)

    return mask


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Yield path and value of each integer in nested dicts and lists."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}[{index}]")
    else:
        yield path, value
