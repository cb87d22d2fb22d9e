"""An AXI4 read memory with a latency that bursts share, and with faults on purpose.

For what cocotbext-axi's memory does not do: answer bursts one behind the other after a fixed
latency, as a DRAM controller does, and break the rules. Benches use cocotbext-axi for all else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge
from cocotb.types import LogicArray
from numpy.typing import NDArray

from sim.streams import current_cycle

__all__ = ["RESPONSES", "Fault", "ReadMemory"]

Kind = Literal["slverr", "decerr", "exokay", "early", "late", "never"]
#: Codes of RRESP and BRESP.
RESPONSES = {"exokay": 1, "slverr": 2, "decerr": 3}


@dataclass(frozen=True)
class Fault:
    """What goes wrong in the first burst of more than one beat, from burst number `burst` on.

    "exokay", "slverr", "decerr": the response of its first beat. "early": RLAST on its first beat,
    and no other beat. "late": three beats more than asked for, RLAST on the last.
    "never": no RLAST.
    """

    kind: Kind
    burst: int


class ReadMemory:
    """Serves the read channels of a port.

    Parameters
    ----------
    dut, prefix : whose port, and what it is called
    data : uint8, the bytes from address 0 on; looked at when a beat is made
    latency : cycles from the transfer of an address to the first beat
    fault : one that happens once

    Attributes
    ----------
    bursts : address and number of beats of each burst asked for
    beat_cycles : cycles of the beats
    """

    def __init__(
        self,
        dut: HierarchyObject,
        prefix: str,
        data: NDArray[np.uint8],
        latency: int = 1,
        fault: Fault | None = None,
    ) -> None:
        self._dut = dut
        self._prefix = prefix
        self._data = data
        self._latency = latency
        self._fault = fault
        self.bursts: list[tuple[int, int]] = []
        self.beat_cycles: list[int] = []
        for name in ("arready", "rvalid", "rid", "rdata", "rresp", "rlast"):
            dut[f"{prefix}_{name}"].value = 0

    async def serve(self, stalls: Iterator[bool], ready: Iterator[bool]) -> None:
        """Run for ever; beats and addresses go in the cycles that the patterns allow."""
        port = {
            f"{channel}{name}": self._dut[f"{self._prefix}_{channel}{name}"]
            for channel, names in (
                ("ar", ("valid", "ready", "addr", "len")),
                ("r", ("valid", "ready", "data", "resp", "last")),
            )
            for name in names
        }
        edge = RisingEdge(self._dut.clk)
        waiting: deque[tuple[int, int, int, int]] = deque()  # cycle, address, response, last
        width = len(port["rdata"])
        offered = False
        while True:
            await edge
            now = current_cycle()
            if offered and port["rready"].value == 1:
                self.beat_cycles.append(now)
                offered = False
            if port["arready"].value == 1 and port["arvalid"].value == 1:
                address, beats = int(port["araddr"].value), int(port["arlen"].value) + 1
                fault = None
                if self._fault and beats > 1 and len(self.bursts) >= self._fault.burst:
                    fault, self._fault = self._fault, None
                self.bursts.append((address, beats))
                for place, response, last in _beats(beats, fault):
                    byte = address + place * width // 8
                    waiting.append((now + self._latency, byte, response, last))
            port["arready"].value = int(next(ready))
            if not offered:
                go = next(stalls) and bool(waiting) and waiting[0][0] <= now + 1
                port["rvalid"].value = int(go)
                if go:
                    _, address, response, last = waiting.popleft()
                    word = self._data[address : address + width // 8].tobytes()
                    port["rdata"].value = LogicArray(int.from_bytes(word, "little"), width)
                    port["rresp"].value = response
                    port["rlast"].value = last
                    offered = True


def _beats(beats: int, fault: Fault | None) -> Iterator[tuple[int, int, int]]:
    """Place, response and RLAST of each beat of a burst."""
    if fault is None:
        yield from ((place, 0, int(place == beats - 1)) for place in range(beats))
    elif fault.kind == "early":
        yield 0, 0, 1
    elif fault.kind == "late":
        yield from ((place % beats, 0, int(place == beats + 2)) for place in range(beats + 3))
    elif fault.kind == "never":
        yield from ((place, 0, 0) for place in range(beats))
    else:
        code = RESPONSES[fault.kind]
        for place in range(beats):
            yield place, 0 if place else code, int(place == beats - 1)
