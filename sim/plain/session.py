"""A session with the accelerator, written down: what a host does, and what must come of it.

A session has a program of register accesses, the beats of every stream, and the memory before and
after. It knows no design: expected values are those of the golden model and of the register map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from golden.engine import Attention
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import WORD_BYTES, JobStatus, Kind, register_map
from sim.host.driver import Driver

__all__ = ["Access", "AccessKind", "Beat", "Session"]

_ALL = 0xFFFFFFFF
#: Fields of registers that read the same after every reset.
_FIXED = (Kind.CONSTANT, Kind.STORED, Kind.EVENT)


class AccessKind(IntEnum):
    """What the host does in one step of its program."""

    WRITE = 0  #: write the data
    AWAIT = 1  #: read until the bits under the mask are the data
    AWAIT_OTHER = 2  #: read until the bits under the mask are not the data
    COMPARE = 3  #: read; the bits under the mask must be the data
    LOAD = 4  #: let as many further beats of the table stream in as the data says; wait for them
    INTERRUPT = 5  #: the interrupt line must be the data


class Access(NamedTuple):
    """A step of the host's program: a register access, or another kind of `AccessKind`.

    address, data, mask : 32 bits each
    name : the register, for readers
    """

    kind: AccessKind
    address: int
    data: int
    mask: int
    name: str


class Beat(NamedTuple):
    """One beat of a stream: TLAST, TDATA and, where the stream has one, TUSER."""

    last: bool
    data: int
    user: int = 0


@dataclass
class Session:
    """Everything between a reset and the end of the last job.

    Parameters
    ----------
    config : the accelerator's configuration
    base : address of the memory's first byte, a multiple of the memory word
    source : where the jobs come from, in a few words

    Attributes
    ----------
    accesses : the host's program
    tables, pairs, queries, outputs : beats of the streams, the outputs expected ones
    before, after : uint8, the memory's bytes before the first job, and as they must be at the end
    jobs, attentions : jobs that were started, and those of them that attend
    cycles : clock cycles that the session may take, at least four times as many as it does take
    """

    config: EngineConfig
    base: int
    source: str
    accesses: list[Access] = field(default_factory=list)
    tables: list[Beat] = field(default_factory=list)
    pairs: list[Beat] = field(default_factory=list)
    queries: list[Beat] = field(default_factory=list)
    outputs: list[Beat] = field(default_factory=list)
    before: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    after: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    jobs: int = 0
    attentions: int = 0
    cycles: int = 5000
    _saturated: int = 0

    def __post_init__(self) -> None:
        self._driver = Driver(self.config)
        self._check_reset()
        self._write("interrupt_enable", done=1)

    # --- what the host does -----------------------------------------------------------------------

    def load(self, packets: Iterable[Sequence[int]]) -> None:
        """Send packets of words for the tables or the anchors, while no job runs."""
        beats = [
            Beat(place == len(packet) - 1, word)
            for packet in packets
            for place, word in enumerate(packet)
        ]
        self.tables += beats
        self.cycles += 4 * len(beats)
        self.accesses.append(Access(AccessKind.LOAD, 0, len(beats), 0, "words of tables"))

    def start(
        self,
        descriptor: Mapping[str, Any],
        vectors: NDArray[np.int64] | None = None,
        queries: NDArray[np.int64] | None = None,
        expected: Attention | None = None,
    ) -> None:
        """Start a job as soon as the queue has room.

        Parameters
        ----------
        descriptor : fields of the job, as `sim.host.driver.descriptor_words` takes them
        vectors : int64 [2, D], key and value of a job that appends
        queries : int64 [G, D], of a job that attends
        expected : golden attention of these queries
        """
        free = next(f.mask for f in register_map()["status"].fields if f.name == "free")
        self._access(AccessKind.AWAIT_OTHER, "status", 0, free)
        names = _names()
        self.accesses += [
            Access(AccessKind.WRITE, address, word, _ALL, names[address])
            for address, word in self._driver.start(descriptor)
        ]
        self.jobs += 1
        self.cycles += self._most_cycles(descriptor)
        if vectors is not None:
            self.pairs += _beats(vectors, 16)
        if queries is not None:
            self.queries += _beats(queries, 16)
        if expected is not None:
            self.attentions += 1
            self._saturated += int(expected.saturated)
            user = int(expected.exponent[0]) & 0xFF
            found = _beats(expected.values[:, 0].numpy(), 32)
            self.outputs += [beat._replace(user=user) for beat in found]

    def settle(self, new_anchors: int = 0) -> None:
        """Await the end of all jobs, which must be well; check registers and the interrupt line.

        Parameters
        ----------
        new_anchors : tokens that have become anchors since the reset
        """
        self._access(AccessKind.AWAIT, "completed", self.jobs)
        self._compare("interrupt", done=1, error=0, overrun=0)
        self._compare("last_status", status=JobStatus.OK)
        self._compare("status", pending=0)
        self._compare("saturated_scores", count=self._saturated)
        if self.config.anchor_slots:
            self._compare("new_anchors", count=new_anchors)
        self._line(1)
        self._write("interrupt", done=1)
        self._compare("interrupt", done=0, error=0, overrun=0)
        self._line(0)

    def refuse(self) -> None:
        """Start a job without tokens, which the accelerator refuses, and clear its error."""
        number = self.jobs
        self.start({})
        self._access(AccessKind.AWAIT, "completed", self.jobs)
        self._compare("interrupt", done=1, error=1, overrun=0)
        self._compare("first_error", status=JobStatus.NO_TOKENS, job=number)
        self._compare("last_status", status=JobStatus.NO_TOKENS)
        self._write("interrupt", done=1, error=1)

    # --- accesses ---------------------------------------------------------------------------------

    def _access(self, kind: AccessKind, name: str, data: int, mask: int = _ALL) -> None:
        self.accesses.append(Access(kind, register_map()[name].address, data, mask, name))

    def _write(self, register: str, /, **values: int) -> None:
        self._access(AccessKind.WRITE, register, register_map()[register].pack(**values))

    def _compare(self, register: str, /, **values: int) -> None:
        """Compare some fields of a register."""
        entry = register_map()[register]
        mask = sum(field.mask for field in entry.fields if field.name in values)
        self._access(AccessKind.COMPARE, register, entry.pack(**values), mask)

    def _line(self, level: int) -> None:
        self.accesses.append(Access(AccessKind.INTERRUPT, 0, level, 1, "interrupt line"))

    def _check_reset(self) -> None:
        """Compare all registers whose values after a reset are known."""
        for register in register_map().values():
            fixed = [field for field in register.fields if field.kind in _FIXED]
            mask = sum(field.mask for field in fixed)
            data = sum(field.reset << field.low for field in fixed)
            for place in range(register.count if fixed else 0):
                address = register.address + WORD_BYTES * place
                name = _names()[address]
                self.accesses.append(Access(AccessKind.COMPARE, address, data, mask, name))
        config = self.config
        self._compare(
            "shape",
            head_dim=config.head_dim,
            query_group=config.query_group,
            max_planes=config.max_planes,
        )
        self._compare("max_context", tokens=config.max_context)
        self._compare("status", pending=0)
        self._compare("completed", jobs=0)
        self._line(0)

    def _most_cycles(self, descriptor: Mapping[str, Any]) -> int:
        """Return the cycle limit of a job on a memory that pauses."""
        config = self.config
        planes = 2 * int(descriptor.get("tokens", 0)) * config.max_planes
        words = 2 + 2 * config.head_dim // config.memory_bits
        return 4 * planes * (config.slices + words) + 40 * config.head_dim + 1500


def _names() -> dict[int, str]:
    """Return the name of each register by address, ``name[place]`` for those of an array."""
    return {
        register.address + WORD_BYTES * place: f"{name}[{place}]" if register.is_array else name
        for name, register in register_map().items()
        for place in range(register.count)
    }


def _beats(vectors: NDArray[np.int64], bits: int) -> list[Beat]:
    """Return a packet: beat d has element d of each vector, the first vector's lowest."""
    mask, dim = (1 << bits) - 1, vectors.shape[1]
    return [
        Beat(
            d == dim - 1,
            sum((int(value) & mask) << bits * n for n, value in enumerate(vectors[:, d])),
        )
        for d in range(dim)
    ]
