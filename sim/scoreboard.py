"""Comparison of a stream's payloads with the expected ones: equal in every bit, none missing, none
extra, and at least one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from amaranth.hdl import ShapeLike

from sim.streams import Payload, pack, unpack

__all__ = ["Mismatch", "Scoreboard"]


class Mismatch(AssertionError):
    """An output differs from the expected one; the message names index and field."""


class Scoreboard:
    """Expected payloads of one output stream.

    Parameters
    ----------
    name : str
        What messages call the stream.
    shape : ShapeLike
        Payload shape: messages name the fields of a layout.
    expected : sequence of payloads
        In order, as `sim.streams.pack` takes them.
    """

    def __init__(self, name: str, shape: ShapeLike, expected: Sequence[Payload]) -> None:
        self.name = name
        self._shape = shape
        self._expected = [pack(shape, payload) for payload in expected]
        self.compared = 0

    def __len__(self) -> int:
        return len(self._expected)

    @property
    def complete(self) -> bool:
        """Whether every expected payload came."""
        return self.compared == len(self)

    def compare(self, received: Sequence[int]) -> None:
        """Compare the packed payloads received so far with the expected ones; raises `Mismatch`."""
        for index in range(self.compared, len(received)):
            if index == len(self._expected):
                extra = unpack(self._shape, received[index])
                raise Mismatch(
                    f"{self.name}: {len(received)} payloads came, {len(self)} were expected; "
                    f"the first extra one is {extra!r}"
                )
            if received[index] != self._expected[index]:
                raise Mismatch(f"{self.name}[{index}]{self._difference(index, received[index])}")
            self.compared += 1

    def finish(self, received: Sequence[int]) -> None:
        """Compare all, and raise `Mismatch` when any is missing or none was expected at all."""
        self.compare(received)
        if not self.complete:
            raise Mismatch(f"{self.name}: {self.compared} of {len(self)} expected payloads came")
        if not self.compared:
            raise Mismatch(f"{self.name}: nothing was compared")

    def _difference(self, index: int, bits: int) -> str:
        """First field that differs, with both values."""
        got = dict(_leaves(unpack(self._shape, bits)))
        want = dict(_leaves(unpack(self._shape, self._expected[index])))
        for path, value in got.items():
            if value != want[path]:
                return f"{path} is {value}, expected {want[path]}"
        return f" is {bits:#x}, expected {self._expected[index]:#x} (bits outside of any field)"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Paths and values of the integers in nested dicts and lists."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}[{index}]")
    else:
        yield path, value
