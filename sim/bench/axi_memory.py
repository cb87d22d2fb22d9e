"""AXI4 memories with overlapping burst latencies and deliberate faults.

These memories do what cocotbext-axi's memory does not: answer queued bursts one after the other
after a latency, as a DRAM controller does, take words before their address, be reset during a
burst, and break rules. Benches use cocotbext-axi for everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge
from cocotb.types import LogicArray
from numpy.typing import NDArray

from sim.bench.streams import current_cycle

__all__ = ["RESPONSES", "Fault", "FaultKind", "ReadMemory", "WriteMemory"]

FaultKind = Literal["slverr", "decerr", "exokay", "early", "late", "silent"]
#: Codes of RRESP and BRESP.
RESPONSES = {"exokay": 1, "slverr": 2, "decerr": 3}


@dataclass(frozen=True)
class Fault:
    """A fault of the memory, which happens once.

    kind : "exokay", "slverr", "decerr": the response of a beat. "early": RLAST on a beat before the
        last, and no further beat. "late": three beats more than asked for, RLAST on the last.
        "silent": no beat comes from this beat on, until `ReadMemory.restart`.
    burst : number of the first burst, counted from 0, that may fail
    beat : number of the failing beat; bursts without this beat do not fail
    within : addresses of bursts that may fail; None: any
    """

    kind: FaultKind
    burst: int = 0
    beat: int = 0
    within: range | None = None

    def strikes(self, number: int, address: int, beats: int) -> bool:
        """Return whether the fault happens in this burst."""
        needed = self.beat + 1 + (self.kind == "early")
        inside = self.within is None or address in self.within
        return number >= self.burst and beats >= needed and inside


class ReadMemory:
    """Serves the read channels of a port.

    Parameters
    ----------
    dut, prefix : the design, and the prefix of its port's signals
    data : uint8, the bytes from address 0 on; read when a beat is offered
    latency : cycles from the transfer of an address to the first beat, or a function that returns
        them
    fault : initial value of the attribute `fault`

    Attributes
    ----------
    data : as above
    fault : the fault that will happen; None once it has happened
    aftermath : response of all beats requested after the faulty burst
    struck : address, number of beats and faulty beat of the last faulty burst
    bursts : address and number of beats of each requested burst
    beat_cycles : cycle of each beat
    """

    def __init__(
        self,
        dut: HierarchyObject,
        prefix: str,
        data: NDArray[np.uint8],
        latency: int | Callable[[], int] = 1,
        fault: Fault | None = None,
    ) -> None:
        self._dut = dut
        self._prefix = prefix
        self.data = data
        self._latency = latency
        self.bursts: list[tuple[int, int]] = []
        self.aftermath = 0
        self.struck: tuple[int, int, int] | None = None
        self.beat_cycles: list[int] = []
        self._waiting: deque[_Beat] = deque()
        self._offered = False
        self.fault: Fault | None = None
        self.restart()
        self.fault = fault
        for name in ("arready", "rid", "rdata", "rresp", "rlast"):
            dut[f"{prefix}_{name}"].value = 0

    def restart(self) -> None:
        """Forget all requests and faults, as in reset."""
        self.fault = None
        self._broken = False
        self._waiting.clear()
        self._offered = False
        self._silent = False
        self._dut[f"{self._prefix}_rvalid"].value = 0

    async def serve(self, stalls: Iterator[bool], ready: Iterator[bool]) -> None:
        """Run for ever; transfer beats and addresses in the cycles that the patterns allow."""
        port = {
            f"{channel}{name}": self._dut[f"{self._prefix}_{channel}{name}"]
            for channel, names in (
                ("ar", ("valid", "ready", "addr", "len")),
                ("r", ("valid", "ready", "data", "resp", "last")),
            )
            for name in names
        }
        edge = RisingEdge(self._dut.clk)
        width = len(port["rdata"])
        while True:
            await edge
            now = current_cycle()
            if self._dut.rst.value == 1:
                self.restart()
                continue
            if self._offered and port["rready"].value == 1:
                self.beat_cycles.append(now)
                self._offered = False
            if port["arready"].value == 1 and port["arvalid"].value == 1:
                self._take(int(port["araddr"].value), int(port["arlen"].value) + 1, width // 8, now)
            port["arready"].value = int(next(ready))
            if not self._offered:
                due = bool(self._waiting) and self._waiting[0].cycle <= now + 1
                go = next(stalls) and due and not self._waiting[0].silent
                port["rvalid"].value = int(go)
                if go:
                    beat = self._waiting.popleft()
                    word = self.data[beat.address : beat.address + width // 8]
                    word = ~word if beat.response else word  # the data of an error is invalid
                    number = int.from_bytes(word.tobytes(), "little")
                    port["rdata"].value = LogicArray(number, width)
                    port["rresp"].value = beat.response
                    port["rlast"].value = beat.last
                    self._offered = True

    def _take(self, address: int, beats: int, word: int, now: int) -> None:
        fault = None
        if self.fault and self.fault.strikes(len(self.bursts), address, beats):
            fault, self.fault = self.fault, None
            self.struck = (address, beats, beats - 1 if fault.kind == "late" else fault.beat)
        self.bursts.append((address, beats))
        latency = self._latency if isinstance(self._latency, int) else self._latency()
        for place, response, last, silent in _beats(beats, fault):
            byte = address // word * word + place * word
            said = self.aftermath if self._broken else response
            self._waiting.append(_Beat(now + latency, byte, said, last, silent))
        self._broken |= fault is not None


class WriteMemory:
    """Serves the write channels of a port.

    A burst is written at once when its last word has come. A burst that fails writes nothing.

    Parameters
    ----------
    dut, prefix : the design, and the prefix of its port's signals
    data : uint8, the bytes from address 0 on
    latency : function that returns the cycles from a burst's last word to its response

    Attributes
    ----------
    data : as above
    fails : number, counted from 0, of the burst answered with `response`; None: no burst
    response : response of the burst that fails
    bursts : address and number of beats of each burst that came whole
    """

    def __init__(
        self,
        dut: HierarchyObject,
        prefix: str,
        data: NDArray[np.uint8],
        latency: Callable[[], int],
    ) -> None:
        self._dut = dut
        self._prefix = prefix
        self.data = data
        self._latency = latency
        self.fails: int | None = None
        self.response = RESPONSES["slverr"]
        self.bursts: list[tuple[int, int]] = []
        self._addresses: deque[tuple[int, int]] = deque()
        self._words: deque[tuple[int, int]] = deque()  # data and strobes
        self._answers: deque[tuple[int, int]] = deque()  # cycle and response
        self._offered = False
        self.restart()
        for name in ("awready", "wready", "bid", "bresp"):
            dut[f"{prefix}_{name}"].value = 0

    def restart(self) -> None:
        """Forget all unanswered bursts, as in reset."""
        self._addresses.clear()
        self._words.clear()
        self._answers.clear()
        self._offered = False
        self._dut[f"{self._prefix}_bvalid"].value = 0

    async def serve(
        self, stalls: Iterator[bool], words: Iterator[bool], addresses: Iterator[bool]
    ) -> None:
        """Run for ever; transfer answers, words and addresses when the patterns allow."""
        port = {
            name: self._dut[f"{self._prefix}_{name}"]
            for name in (
                *("awvalid", "awready", "awaddr", "awlen", "wvalid", "wready", "wdata", "wstrb"),
                *("bvalid", "bready", "bresp"),
            )
        }
        edge = RisingEdge(self._dut.clk)
        word = len(port["wdata"]) // 8
        while True:
            await edge
            if self._dut.rst.value == 1:
                self.restart()
                continue
            if self._offered and port["bready"].value == 1:
                self._offered = False
            if port["awvalid"].value == 1 and port["awready"].value == 1:
                beats = int(port["awlen"].value) + 1
                self._addresses.append((int(port["awaddr"].value), beats))
            if port["wvalid"].value == 1 and port["wready"].value == 1:
                self._words.append((int(port["wdata"].value), int(port["wstrb"].value)))
            self._write(word)
            port["awready"].value = int(next(addresses))
            port["wready"].value = int(next(words))
            if not self._offered:
                due = bool(self._answers) and self._answers[0][0] <= current_cycle() + 1
                self._offered = next(stalls) and due
                port["bvalid"].value = int(self._offered)
                if self._offered:
                    port["bresp"].value = self._answers.popleft()[1]

    def _write(self, word: int) -> None:
        """Write the bursts whose words have all come."""
        while self._addresses and len(self._words) >= self._addresses[0][1]:
            address, beats = self._addresses.popleft()
            fails = len(self.bursts) == self.fails
            self.bursts.append((address, beats))
            due = current_cycle() + self._latency()
            self._answers.append((due, self.response if fails else 0))
            for beat in range(beats):
                data, strobes = self._words.popleft()
                at = address // word * word + beat * word
                for lane in range(word):
                    if strobes >> lane & 1 and not fails:
                        self.data[at + lane] = data >> 8 * lane & 0xFF


@dataclass(frozen=True)
class _Beat:
    cycle: int
    address: int
    response: int
    last: int
    silent: bool


def _beats(beats: int, fault: Fault | None) -> Iterator[tuple[int, int, int, bool]]:
    """Yield place, response, RLAST and "never comes" of each beat of a burst."""
    kind = fault.kind if fault else None
    at = fault.beat if fault else 0
    end = beats
    if kind == "early":
        end = at + 1
    elif kind == "late":
        end = beats + 3
    for place in range(end):
        struck = fault is not None and place == at
        response = RESPONSES.get(fault.kind, 0) if fault and struck else 0
        yield place % beats, response, int(place == end - 1), struck and kind == "silent"
