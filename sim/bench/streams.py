"""Agents for valid/ready streams: a driver, a monitor, a sink, and their stall patterns.

All agents sample at the rising edge, which shows the values of the cycle that ends there, and drive
right after the edge. A transfer happens in a cycle in which `valid` and `ready` are both high.
`StreamMonitor` asserts the protocol rule: once `valid` is high, `valid` stays high with the same
payload until the transfer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import Any

import numpy as np
from amaranth.hdl import Shape, ShapeLike
from amaranth.lib import data
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge
from cocotb.types import LogicArray
from cocotb.utils import get_sim_time

__all__ = [
    "PERIOD_NS",
    "STALLS",
    "Payload",
    "ProtocolError",
    "StreamDriver",
    "StreamMonitor",
    "StreamSink",
    "changing_stalls",
    "current_cycle",
    "layout_of",
    "pack",
    "packer",
    "stall_pattern",
    "unpack",
]

#: Clock period of all benches.
PERIOD_NS = 10

#: Names of the stall patterns.
STALLS = ("none", "random", "bursts", "slow")

#: A payload in a test. For a plain shape: an integer or a member of an enumeration. For a layout:
#: nested mappings and sequences, or the layout's bits as an integer.
Payload = int | Enum | Mapping[str, Any] | Sequence[Any]


class ProtocolError(AssertionError):
    """Raised when a stream breaks a rule of the handshake."""


def current_cycle() -> int:
    """Return the number of the current clock cycle."""
    return int(get_sim_time("ns")) // PERIOD_NS


def pack(shape: ShapeLike, payload: Payload) -> int:
    """Pack a payload into an unsigned integer; see `packer`."""
    return packer(shape)(payload)


def packer(shape: ShapeLike) -> Callable[[Payload], int]:
    """Return a function that packs payloads of a shape, much faster than `Layout.const`.

    A payload of a plain shape is an integer. A payload of a layout is an integer with the layout's
    bits, or a mapping or a sequence of its fields' payloads, in which missing fields are zero.

    The function raises ValueError for a number that does not fit, and KeyError or IndexError for a
    field that is not in the layout.
    """
    layout, plain = layout_of(shape), Shape.cast(shape)
    width = plain.width
    low, high = (-(1 << width >> 1), 1 << width >> 1) if plain.signed else (0, 1 << width)
    mask = (1 << width) - 1

    def pack_number(payload: Payload) -> int:
        number = payload.value if isinstance(payload, Enum) else payload
        if not isinstance(number, int) or not low <= number < max(high, 1):
            raise ValueError(f"payload {payload!r} does not fit {plain!r}")
        return number & mask

    if layout is None:
        return pack_number
    fields = {key: (packer(field.shape), field.offset) for key, field in layout}

    def pack_fields(payload: Payload) -> int:
        if isinstance(payload, int | Enum):
            return pack_number(payload)
        bits = 0
        parts = payload.items() if isinstance(payload, Mapping) else enumerate(payload)
        for key, part in parts:
            pack_field, offset = fields[key]
            bits |= pack_field(part) << offset
        return bits

    return pack_fields


def unpack(shape: ShapeLike, bits: int) -> Any:
    """Unpack the bits of `pack` into an integer, or nested dicts and lists of integers."""
    layout = layout_of(shape)
    if isinstance(layout, data.ArrayLayout):
        return [unpack(field.shape, _slice(bits, field)) for _, field in layout]
    if layout is not None:
        return {name: unpack(field.shape, _slice(bits, field)) for name, field in layout}
    plain = Shape.cast(shape)
    sign = 1 << (plain.width - 1) if plain.signed else 0
    return (bits ^ sign) - sign


def layout_of(shape: ShapeLike) -> data.Layout | None:
    """Return the layout behind a payload shape; None for a plain shape."""
    try:
        return data.Layout.cast(shape)
    except TypeError:
        return None


def _slice(bits: int, field: data.Field) -> int:
    return (bits >> field.offset) & ((1 << field.width) - 1)


def stall_pattern(name: str, rng: np.random.Generator) -> Iterator[bool]:
    """Yield for ever whether to go in each cycle.

    "none" always goes; "random" goes in half of the cycles; "bursts" goes and stalls for 1 to 12
    cycles in turn; "slow" goes in every fifth cycle.

    Raises
    ------
    ValueError
        For a name that is not in `STALLS`.
    """
    if name == "none":
        while True:
            yield True
    elif name == "random":
        while True:
            yield from (bool(go) for go in rng.integers(0, 2, 64))
    elif name == "bursts":
        while True:
            yield from [True] * int(rng.integers(1, 13))
            yield from [False] * int(rng.integers(1, 13))
    elif name == "slow":
        while True:
            yield from (False, False, False, False, True)
    else:
        raise ValueError(f"stall pattern must be one of {', '.join(STALLS)}, not {name!r}")


def changing_stalls(rng: np.random.Generator) -> Iterator[bool]:
    """Yield for ever the patterns of `STALLS` in turn, each for 1 to 80 cycles."""
    own = rng.spawn(1)[0]
    while True:
        pattern = stall_pattern(str(own.choice(["none", *STALLS])), own.spawn(1)[0])
        yield from islice(pattern, int(own.integers(1, 81)))


class _Agent:
    """Base of agents: handles of one stream port, and `cycles` of its transfers, in order."""

    def __init__(self, dut: HierarchyObject, port: str) -> None:
        self.port = port
        self.cycles: list[int] = []
        self._clock = dut.clk
        self._valid = dut[f"{port}__valid"]
        self._ready = dut[f"{port}__ready"]
        self._payload = dut[f"{port}__payload"]

    def _bit(self, handle: Any, name: str) -> bool:
        value = handle.value
        if not value.is_resolvable:
            raise ProtocolError(f"{self.port}: {name} is {value} in cycle {current_cycle()}")
        return bool(value)


class StreamDriver(_Agent):
    """Source of a stream: sends packed payloads in order, with the gaps of a stall pattern.

    A gap may come before a payload is offered, never during the offer: `valid` does not wait for
    `ready` and does not fall before the transfer. During a gap the port holds the last payload with
    every bit inverted, which exposes a block that reads the payload without `valid`.
    """

    def __init__(self, dut: HierarchyObject, port: str) -> None:
        super().__init__(dut, port)
        self._valid.value = 0
        self._payload.value = 0

    async def send(self, payloads: Sequence[int], stalls: Iterator[bool]) -> None:
        """Send all payloads; return after the last transfer."""
        width = len(self._payload)
        edge = RisingEdge(self._clock)
        for bits in payloads:
            while not next(stalls):
                await edge
            self._payload.value = LogicArray(bits, width)
            self._valid.value = 1
            await edge
            while not self._bit(self._ready, "ready"):
                await edge
            self.cycles.append(current_cycle())
            self._valid.value = 0
            self._payload.value = LogicArray(bits ^ ((1 << width) - 1), width)


class StreamMonitor(_Agent):
    """Observer of a stream: collects packed payloads and asserts the protocol rules.

    Attributes
    ----------
    payloads : payloads that were taken
    in_reset : while true, nothing is checked, and an offer may be withdrawn
    """

    def __init__(self, dut: HierarchyObject, port: str) -> None:
        super().__init__(dut, port)
        self.payloads: list[int] = []
        self.in_reset = False

    async def watch(self) -> None:
        """Collect payloads and check the protocol rules for ever."""
        edge = RisingEdge(self._clock)
        offered: LogicArray | None = None  # payload of a transfer that has not happened yet
        while True:
            await edge
            if self.in_reset:
                offered = None
                continue
            if not self._bit(self._valid, "valid"):
                if offered is not None:
                    raise ProtocolError(
                        f"{self.port}: valid fell before the transfer in cycle {current_cycle()}"
                    )
                continue
            payload = self._payload.value
            if offered is not None and payload != offered:
                raise ProtocolError(
                    f"{self.port}: payload changed from {offered} to {payload} while it waited, "
                    f"in cycle {current_cycle()}"
                )
            offered = payload
            if self._bit(self._ready, "ready"):
                if not payload.is_resolvable:
                    raise ProtocolError(
                        f"{self.port}: payload is {payload} in cycle {current_cycle()}"
                    )
                offered = None
                self.cycles.append(current_cycle())
                self.payloads.append(payload.to_unsigned())


class StreamSink(StreamMonitor):
    """Monitor that also drives `ready`, with the back-pressure of a stall pattern."""

    def __init__(self, dut: HierarchyObject, port: str) -> None:
        super().__init__(dut, port)
        self._ready.value = 0

    async def drain(self, stalls: Iterator[bool], patient: bool = False) -> None:
        """Drive `ready` for ever; `watch` collects the payloads.

        A patient sink is not ready before it has seen `valid`, so a block whose `valid` waits for
        `ready` hangs.
        """
        edge = RisingEdge(self._clock)
        for go in stalls:
            self._ready.value = int(go and (not patient or self._valid.value == 1))
            await edge
