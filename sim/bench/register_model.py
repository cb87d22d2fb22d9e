"""A cycle-accurate model of the registers in docs/registers.md: the bench's twin of `rtl.control`.

The model is written from the map and the text of docs/registers.md, independently of the hardware.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Shape

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import SIDES
from kvtq_hw.contract.registers import WORD_BYTES, Kind, Register, register_map
from rtl.control import descriptor_layout
from sim.bench.streams import layout_of, pack

__all__ = ["Inputs", "RegisterModel"]

_OKAY, _SLVERR = 0, 2
_QUEUE = 2  # most waiting jobs
_REGISTERS = register_map()
_EVENTS = tuple(f.name for f in _REGISTERS["interrupt"].fields)


@dataclass(frozen=True)
class Inputs:
    """Input ports in a cycle; None where nothing is offered.

    address, read : byte addresses of a write and of a read
    word : data and strobes
    ended : status of the job that ends in this cycle
    """

    address: int | None
    word: tuple[int, int] | None
    read: int | None
    takes_write_answer: bool
    takes_read_answer: bool
    takes_job: bool
    ended: int | None
    counters: Mapping[str, int]


@dataclass
class RegisterModel:
    """The registers, the queue, and the accesses in progress on the bus.

    Attributes
    ----------
    happened : events of the last cycle, by names of the bench's coverage
    """

    config: EngineConfig
    happened: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the registers, the queue and the bus."""
        self._at: dict[int, tuple[Register, int]] = {
            register.address + WORD_BYTES * index: (register, index)
            for register in _REGISTERS.values()
            for index in range(register.count)
        }
        self._stored = dict.fromkeys(self._at, 0)
        self.kept_address: int | None = None
        self.kept_word: tuple[int, int] | None = None
        self.kept_read: int | None = None
        self.write_answer: int | None = None
        self.read_answer: tuple[int, int] | None = None
        self.queue: deque[int] = deque()
        self.pending = self._completed = self._last_status = 0
        self._first_error = (0, 0)
        self._events = dict.fromkeys(_EVENTS, 0)

    @property
    def irq(self) -> int:
        """Return the level of the interrupt line."""
        enabled = _REGISTERS["interrupt_enable"].unpack(
            self._stored[_REGISTERS["interrupt_enable"].address]
        )
        return int(any(self._events[name] and enabled[name] for name in _EVENTS))

    def step(self, now: Inputs) -> None:
        """Advance to the next cycle."""
        self.happened = []
        address = now.address if self.kept_address is None else self.kept_address
        word = now.word if self.kept_word is None else self.kept_word
        read = now.read if self.kept_read is None else self.kept_read
        if address is not None and word is not None:
            order = "together"
            if self.kept_address is not None and self.kept_word is None:
                order = "address first"
            elif self.kept_word is not None and self.kept_address is None:
                order = "word first"
            self.happened.append(("order", order))
        writes = (
            address is not None
            and word is not None
            and (self.write_answer is None or now.takes_write_answer)
        )
        reads = read is not None and (self.read_answer is None or now.takes_read_answer)
        reading = self._read(read, now.counters) if reads and read is not None else None

        if self.write_answer is not None and now.takes_write_answer:
            self.write_answer = None
        if self.read_answer is not None and now.takes_read_answer:
            self.read_answer = None
        if reading is not None:
            self.read_answer, read = reading, None
        cleared: dict[str, int] = {}
        start = False
        if writes and address is not None and word is not None:
            self.write_answer = _OKAY if _place(address) in self._at else _SLVERR
            self._happened("write", "known" if self.write_answer == _OKAY else "unknown")
            register, _ = self._at.get(_place(address), (None, 0))
            written = _strobed(*word)
            if register is not None and register.name == "interrupt":
                cleared = register.unpack(written)
            start = register is not None and register.name == "control" and bool(written & 1)
        self._jobs(start, now, cleared)
        if writes and address is not None and word is not None:
            self._store(address, word)
            address = word = None
        self.kept_address, self.kept_word, self.kept_read = address, word, read

    # --- jobs and events ------------------------------------------------------------------------

    def _jobs(self, start: bool, now: Inputs, cleared: Mapping[str, int]) -> None:
        has_room = len(self.queue) < _QUEUE
        if start:
            self._happened("start", f"{len(self.queue)} wait")
        takes = bool(self.queue) and now.takes_job
        if start and not has_room:
            self._happened("lost", "while one leaves" if takes else "alone")
        descriptor = self._descriptor() if start and has_room else None
        if takes:
            self.queue.popleft()
        if descriptor is not None:
            self.queue.append(descriptor)
            self.pending += 1
        ends = now.ended is not None
        failed = ends and now.ended != 0
        happens = {"done": ends, "error": failed, "overrun": start and not has_room}
        if failed and now.ended is not None:
            first = not self._events["error"] or bool(cleared.get("error"))
            self._happened("first_error", "set" if first else "kept")
            if first:
                self._first_error = now.ended, self._completed & 0xFFFFFF
        if ends and now.ended is not None:
            self.pending -= 1
            self._last_status = now.ended
            self._completed = (self._completed + 1) & 0xFFFFFFFF
        for name, event in happens.items():
            if cleared.get(name):
                what = "while it happens" if event else "set" if self._events[name] else "clear"
                self._happened(f"clear_{name}", what)
            self._events[name] = int(event or (self._events[name] and not cleared.get(name)))

    def _descriptor(self) -> int:
        """Return the descriptor in the registers, as bits of its layout."""
        layout = descriptor_layout(self.config)
        fields: dict[str, Any] = dict(self._fields("job_flags"))
        fields |= {f"{name}_digits": value for name, value in self._fields("digits").items()}
        for name, register in (
            ("table", "table"),
            ("value_exponent", "value_exponent"),
            *((name, name) for name in ("tokens", "sink_tokens", "body_tokens", "window_tokens")),
            *((name, name) for name in ("window_start", "window_slot", "body_slot")),
            ("tier_constant", "tier_constant"),
            ("anchors", "anchors"),
            ("anchor_threshold", "anchor_threshold"),
        ):
            fields[name] = self._only(register)
        for name in ("query_exponent", "sink_maximum", "sink_weight"):
            shape = Shape.cast(layout[name].shape.elem_shape)
            words = (self._only(name, g) for g in range(self.config.query_group))
            fields[name] = [_cut(word, shape) for word in words]
        for side in SIDES:
            fields[f"{side}_constants"] = [
                self._only(f"{side}_constant", run) for run in range(self.config.max_planes)
            ]
            bases = {}
            for region in ("sinks", "body", "window"):
                low, high = (self._only(f"{side}_{region}", half) for half in range(2))
                mask = (1 << self.config.address_bits) - 1
                bases[region] = (low | high << 32) & mask
            fields[side] = bases
        shape = layout_of(layout)
        assert shape is not None
        return pack(shape, fields)

    # --- registers --------------------------------------------------------------------------------

    def _fields(self, name: str, index: int = 0) -> dict[str, int]:
        register = _REGISTERS[name]
        return register.unpack(self._stored[register.address + WORD_BYTES * index])

    def _only(self, name: str, index: int = 0) -> int:
        (value,) = self._fields(name, index).values()
        return value

    def _store(self, address: int, word: tuple[int, int]) -> None:
        place = _place(address)
        if place not in self._at:
            return
        data, strobes = word
        mask = _strobed(0xFFFFFFFF, strobes)
        stored = sum(f.mask for f in self._at[place][0].fields if f.kind is Kind.STORED)
        self._stored[place] = self._stored[place] & ~(mask & stored) | data & mask & stored

    def _read(self, address: int, counters: Mapping[str, int]) -> tuple[int, int]:
        place = _place(address)
        self._happened("read", "known" if place in self._at else "unknown")
        if place not in self._at:
            return 0, _SLVERR
        register, _ = self._at[place]
        said = self._says(counters).get(register.name, {})
        word = self._stored[place]
        for each in register.fields:
            if each.kind is Kind.CONSTANT:
                word |= each.reset << each.low
            elif each.kind is Kind.INPUT:
                word |= said[each.name] << each.low
            elif each.kind is Kind.EVENT:
                word |= self._events[each.name] << each.low
        return word, _OKAY

    def _says(self, counters: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """Return the values of read-only fields, by register."""
        config = self.config
        shape = ("head_dim", "query_group", "max_planes")
        return {
            "shape": {name: getattr(config, name) for name in shape},
            "max_context": {"tokens": config.max_context},
            "status": {"free": _QUEUE - len(self.queue), "pending": self.pending},
            "completed": {"jobs": self._completed},
            "last_status": {"status": self._last_status},
            "first_error": {"status": self._first_error[0], "job": self._first_error[1]},
            **{name: {"count": value} for name, value in counters.items()},
        }

    def _happened(self, point: str, bin_: str) -> None:
        self.happened.append((point, bin_))


def _place(address: int) -> int:
    return address // WORD_BYTES * WORD_BYTES


def _cut(word: int, shape: Shape) -> int:
    """Return a number in the low bits of a word."""
    bits = word & ((1 << shape.width) - 1)
    return bits - (bits >> (shape.width - 1) << shape.width) if shape.signed else bits


def _strobed(data: int, strobes: int) -> int:
    return sum(data & 0xFF << 8 * i for i in range(WORD_BYTES) if strobes >> i & 1)
