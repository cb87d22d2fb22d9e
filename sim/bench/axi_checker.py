"""The checker on every AXI port of a bench: feeds `sim.bench.axi_rules` from cocotb.

`watch_buses` finds the ports in the component's signature. Every test lists its watched ports in a
file that `sim.bench.runner` provides; the runner refuses a run in which a port was not watched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cocotb
from amaranth.lib import wiring
from cocotb.handle import HierarchyObject, ValueObjectBase
from cocotb.triggers import RisingEdge

from rtl.axi import Axi4, Axi4Lite, Axi4Read, Axi4Write, AxiStream, BusSignature
from sim.bench.axi_rules import AxiError, AxiRules, BusRules, StreamRules
from sim.bench.streams import current_cycle

__all__ = ["WATCHED_VARIABLE", "bus_ports", "rules_of", "unwatched", "watch_buses"]

#: Environment variable with the file to which a test appends its watched ports.
WATCHED_VARIABLE = "KVTQ_WATCHED_BUSES"

#: Most outstanding bursts of the memory port: see `rtl.record_reader`, `rtl.record_writer`.
_READS, _WRITES = 16, 8
#: Most outstanding register accesses: one whose answer waits to be taken, and one behind it.
_ACCESSES = 2


def bus_ports(component: wiring.Component) -> dict[str, BusSignature]:
    """Return the AXI ports of a component by name."""
    return {
        port: member.signature
        for port, member in component.signature.members.items()
        if not member.is_port and isinstance(member.signature, BusSignature)
    }


def rules_of(signature: BusSignature, beats: int | None = None) -> BusRules:
    """Return the rules of a port; `beats` is the packet length of a stream with fixed packets.

    Raises
    ------
    TypeError
        For a protocol without rules.
    """
    widths = {name: member.shape for name, member in signature.members.items()}
    if isinstance(signature, AxiStream):
        return StreamRules(user="tuser" in widths, beats=beats)
    if isinstance(signature, Axi4Lite):
        return AxiRules("rw", widths["wdata"] // 8, lite=True, reads=_ACCESSES, writes=_ACCESSES)
    for kind, halves in ((Axi4, "rw"), (Axi4Read, "r"), (Axi4Write, "w")):
        if isinstance(signature, kind):
            word = widths["rdata" if "r" in halves else "wdata"] // 8
            return AxiRules(halves, word, reads=_READS, writes=_WRITES)
    raise TypeError(f"no rules for {type(signature).__name__}")


def watch_buses(
    dut: HierarchyObject, component: wiring.Component, beats: Mapping[str, int] | None = None
) -> dict[str, BusRules]:
    """Start a checker on each AXI port; call this in reset, at the start of a test.

    A broken rule ends the test with `sim.bench.axi_rules.AxiError`.

    Parameters
    ----------
    beats : beats per packet, by the name of the stream port

    Returns
    -------
    dict
        The rules by port, with tolerated rules and recorded events.
    """
    watched = {}
    for port, signature in bus_ports(component).items():
        rules = rules_of(signature, (beats or {}).get(port))
        cocotb.start_soon(_watch(dut, port, rules))
        watched[port] = rules
    if watched:
        with Path(os.environ[WATCHED_VARIABLE]).open("a", encoding="utf-8") as file:
            file.writelines(f"{port}\n" for port in watched)
    return watched


def unwatched(file: Path, component: wiring.Component, tests: int) -> list[str]:
    """Return the ports that were watched by fewer than `tests` tests."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return [port for port in bus_ports(component) if lines.count(port) < tests]


async def _watch(dut: HierarchyObject, port: str, rules: BusRules) -> None:
    handles: dict[str, ValueObjectBase[Any, Any]] = {}

    def read(name: str) -> int | str:
        handle = handles.get(name)
        if handle is None:
            handle = handles[name] = dut[f"{port}_{name}"]
        value = handle.value
        if value.is_resolvable:
            return int(value)
        return str(value)

    edge, reset = RisingEdge(dut.clk), dut.rst
    while True:
        await edge
        try:
            rules.step(read, reset.value == 1)
        except AxiError as error:
            raise AxiError(error.violation, f"{port}, cycle {current_cycle()}") from None
