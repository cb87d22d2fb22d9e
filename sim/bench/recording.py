"""Recording of a design's ports in every cycle of a bench, for the simulation of its netlist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from amaranth.hdl import Shape
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow
from cocotb.handle import HierarchyObject
from cocotb.triggers import FallingEdge
from numpy.typing import NDArray

from rtl.verilog import port_members

__all__ = ["RECORD_VARIABLE", "Recording", "load_recording", "record"]

#: Environment variable with the file to record to; if it is unset, nothing is recorded.
RECORD_VARIABLE = "KVTQ_RECORD_FILE"


@dataclass(frozen=True)
class Recording:
    """Recorded port bits, uint8 [cycles, width], least significant first; "rst" is an input."""

    inputs: Mapping[str, NDArray[np.uint8]]
    outputs: Mapping[str, NDArray[np.uint8]]


async def record(dut: HierarchyObject, component: wiring.Component, file: Path) -> None:
    """Write the ports' values at every falling edge: the values that the next rising edge samples.

    The file grows with every cycle, so that the file is complete whenever the bench ends.
    """
    widths = _widths(component)
    with file.open("wb") as target:
        while True:
            await FallingEdge(dut.clk)
            for name, width in widths.items():
                value = dut[name].value
                number = int(value) if width == 1 else value.to_unsigned()
                target.write(number.to_bytes(-(-width // 8), "little"))
            target.flush()


def load_recording(component: wiring.Component, file: Path) -> Recording:
    """Read a file that `record` wrote of a design with the component's ports."""
    widths = _widths(component)
    row = sum(-(-width // 8) for width in widths.values())
    data = np.frombuffer(file.read_bytes(), np.uint8)
    data = data[: len(data) // row * row].reshape(-1, row)
    members = port_members(component)
    ports: dict[bool, dict[str, NDArray[np.uint8]]] = {True: {}, False: {}}
    start = 0
    for name, width in widths.items():
        end = start - (-width // 8)
        bits = np.unpackbits(data[:, start:end], axis=1, count=width, bitorder="little")
        ports[name == "rst" or members[name].flow is Flow.In][name] = bits
        start = end
    return Recording(ports[True], ports[False])


def _widths(component: wiring.Component) -> dict[str, int]:
    """Return the width of each recorded port."""
    widths = {"rst": 1}
    for name, member in port_members(component).items():
        if width := Shape.cast(member.shape).width:
            widths[name] = width
    return widths
