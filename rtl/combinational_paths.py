"""Paths from inputs to outputs of a design that pass through no register, in its Verilog."""

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
#: Cells in which bit i of the output sees bit i of each operand, and all of those in `_SELECTS`.
_BITWISE = frozenset({"$not", "$pos", "$and", "$or", "$xor", "$xnor", "$mux"})
_SELECTS = "S"
#: Cells without a function, and those that write a memory.
_IGNORED = frozenset({"$scopeinfo", "$memwr", "$memwr_v2", "$meminit", "$meminit_v2"})

# As far as the writer of the Verilog went, and flat; nothing is optimised that may hide a path.
_PASSES = ("proc -noopt", "flatten", "opt_clean")


def combinational_paths(verilog: str, top: str) -> set[tuple[str, str]]:
    """Pairs (input, output) of ports of which the output sees the input in the same cycle.

    Bit by bit through logic that works bit by bit (`_BITWISE`); any other cell's output sees all of
    its inputs. So a pair may be one that no value of the other inputs opens, and none is missing.

    Parameters
    ----------
    verilog : str
        Text as `rtl.verilog.emit` writes it, of one clock.
    top : str
        Name of the top module.

    Raises
    ------
    ValueError
        For a loop, or a cell whose output may or may not be registered.
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
    """The bits that each bit driven by logic sees; bits of registers are not in it."""
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
    """What bit `place` of an output sees of an operand, which may be shorter."""
    return bits if whole else [bits[min(place, len(bits) - 1)]]


def _wires(bits: Iterable[Any]) -> tuple[int, ...]:
    """Without the constants, which are strings."""
    return tuple({bit for bit in bits if isinstance(bit, int)})


class _Sources:
    """Inputs that bits see, each found once."""

    def __init__(self, seen_by: dict[int, tuple[int, ...]], inputs: dict[int, str]) -> None:
        self._seen_by = seen_by
        self._found = {bit: frozenset([name]) for bit, name in inputs.items()}

    def of(self, bit: Any) -> frozenset[str]:
        """Names of the inputs that a bit sees; raises ValueError where it sees itself."""
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
