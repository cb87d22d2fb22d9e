"""Combinational paths of a design in Verilog: from inputs to outputs, through no register."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rtl.yosys import run_yosys

__all__ = ["combinational_paths"]

#: Cells whose outputs follow the clock alone.
_REGISTERS = frozenset({"$dff", "$dffe", "$sdff", "$sdffe", "$sdffce"})
#: Cells in which bit i of the output depends on bit i of each operand, but on all bits of operands
#: in `_SELECTS`.
_BITWISE = frozenset({"$not", "$pos", "$and", "$or", "$xor", "$xnor", "$mux"})
_SELECTS = "S"
#: Cells without a function, and cells that write a memory.
_IGNORED = frozenset({"$scopeinfo", "$memwr", "$memwr_v2", "$meminit", "$meminit_v2"})

# Lower as far as the Verilog's writer did, and flatten; optimise nothing that may hide a path.
_PASSES = ("proc -noopt", "flatten", "opt_clean")


def combinational_paths(verilog: str, top: str) -> set[tuple[str, str]]:
    """Return the port pairs (input, output) whose output sees the input in the same cycle.

    Bitwise cells (`_BITWISE`) are followed bit by bit; the output of any other cell depends on all
    of its inputs. So no pair is missing, but a pair may be one that no value of the other inputs
    opens.

    Parameters
    ----------
    verilog : str
        Text as `rtl.verilog.emit` writes it, of one clock.
    top : str
        Name of the top module.

    Raises
    ------
    ValueError
        For a combinational loop, or a cell whose output may or may not be registered.
    rtl.yosys.YosysError
        When the text is no valid design.
    """
    with tempfile.TemporaryDirectory(prefix="kvtq-") as folder:
        directory = Path(folder)
        (directory / "design.v").write_text(verilog, encoding="utf-8")
        passes = ["read_verilog -sv design.v", f"hierarchy -check -top {top}", *_PASSES]
        run_yosys([*passes, "write_json design.json"], directory)
        module = json.loads((directory / "design.json").read_text("utf-8"))["modules"][top]
    seen_by = _drivers(module["cells"])
    ports = module["ports"]
    inputs = {
        bit: name
        for name, port in ports.items()
        if port["direction"] == "input"
        for bit in port["bits"]
    }
    sources = _Sources(seen_by, inputs)
    return {
        (source, name)
        for name, port in ports.items()
        if port["direction"] == "output"
        for bit in port["bits"]
        for source in sources.of(bit)
    }


def _drivers(cells: dict[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return the bits on which each bit driven by logic depends, without the bits of registers."""
    seen_by: dict[int, tuple[int, ...]] = {}
    for name, cell in cells.items():
        kind, connections = cell["type"], cell["connections"]
        if kind in _REGISTERS or kind in _IGNORED:
            continue
        if kind in ("$memrd", "$memrd_v2"):
            if int(cell["parameters"]["CLK_ENABLE"], 2):
                continue
            seen_by |= dict.fromkeys(connections["DATA"], _wires(connections["ADDR"]))
            continue
        directions = cell.get("port_directions", {})
        outputs = [port for port, direction in directions.items() if direction == "output"]
        operands = [port for port, direction in directions.items() if direction == "input"]
        if outputs != ["Y"]:
            raise ValueError(f"cell {name} of type {kind} is neither logic nor a known register")
        if kind in _BITWISE:
            for place, bit in enumerate(connections["Y"]):
                seen_by[bit] = _wires(
                    each
                    for port in operands
                    for each in _in_place(connections[port], place, port in _SELECTS)
                )
        else:
            everything = _wires(bit for port in operands for bit in connections[port])
            seen_by |= dict.fromkeys(connections["Y"], everything)
    return seen_by


def _in_place(bits: list[Any], place: int, whole: bool) -> list[Any]:
    """Return the bits of an operand (maybe a shorter one) on which output bit `place` depends."""
    return bits if whole else [bits[min(place, len(bits) - 1)]]


def _wires(bits: Iterable[Any]) -> tuple[int, ...]:
    """Return the bits without the constants, which are strings."""
    return tuple({bit for bit in bits if isinstance(bit, int)})


class _Sources:
    """The inputs on which bits depend, found once per bit."""

    def __init__(self, seen_by: dict[int, tuple[int, ...]], inputs: dict[int, str]) -> None:
        self._seen_by = seen_by
        self._found = {bit: frozenset([name]) for bit, name in inputs.items()}

    def of(self, bit: Any) -> frozenset[str]:
        """Return the inputs on which a bit depends; raise ValueError if it depends on itself."""
        if not isinstance(bit, int):
            return frozenset()
        found, stack, open_ = self._found, [bit], set()
        while stack:
            top = stack[-1]
            if top in found:
                stack.pop()
                continue
            below = self._seen_by.get(top, ())
            missing = [each for each in below if each not in found]
            if not missing:
                found[top] = frozenset[str]().union(*(found[each] for each in below))
                open_.discard(top)
                stack.pop()
            elif top in open_:
                raise ValueError(f"bit {top} of the netlist sees itself")
            else:
                open_.add(top)
                stack += missing
        return found[bit]
