"""Cell libraries in Liberty files: names, areas and functions of the cells, the clock gate."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import re
import zlib
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import LARGEST_FILE, decoded, read_bytes
from kvtq_hw.estimates.liberty_check import check_library
from kvtq_hw.estimates.liberty_format import Group, parse_liberty

__all__ = [
    "ClockGate",
    "Liberty",
    "clock_gate_of",
    "load_liberty",
    "pins_of",
    "shipped_liberty",
    "truth_table",
]

_SHIPPED = "sky130hd_area.lib"

_WHAT = "Liberty file"

#: Liberty's name of a clock gate with a latch, for flip-flops of the rising edge: the latch takes
#: the enable while the clock is low, so that the gated clock has whole pulses only.
_LATCHED_GATE = "latch_posedge"


@dataclass(frozen=True)
class ClockGate:
    """A clock gate: its cell, and the pins of the clock, of the enable and of the gated clock."""

    cell: str
    clock: str
    enable: str
    output: str


@dataclass(frozen=True)
class Liberty:
    """A library of cells.

    Parameters
    ----------
    source : str
        Path of the file, or "shipped".
    text : str
        Text of the file, unpacked.
    root : Group
        The file's library group.
    gating : bool
        Whether synthesis may use the library's clock gates.
    """

    source: str
    text: str = field(repr=False)
    root: Group = field(repr=False)
    gating: bool = True

    @property
    def name(self) -> str:
        """Name of the library, as written in its text."""
        return self.root.names[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def key(self) -> dict[str, str | None]:
        """What a result of synthesis depends on, for keys of stored results."""
        return {"liberty": self.digest, "clock_gate": self.clock_gate_cell}

    @property
    def clock_gate_cell(self) -> str | None:
        """Name of the clock gate's cell; None if every flip-flop is clocked in every cycle."""
        return None if self.clock_gate is None else self.clock_gate.cell

    @cached_property
    def clock_gate(self) -> ClockGate | None:
        """The strongest clock gate; None without `gating`, or if the library has none.

        The clock pins behind a gate are a load of up to hundreds of flip-flops. Libraries mark
        clock gates as ``dont_use``, since nothing else may take them: here the mark does not count.
        """
        found = [
            (float(pins_of(self.cells[name])[gate.output].get("max_capacitance") or 0), name, gate)
            for name, cell in self.cells.items()
            if (gate := clock_gate_of(cell))
        ]
        return max(found, key=lambda entry: entry[:2])[2] if self.gating and found else None

    @cached_property
    def cells(self) -> dict[str, Group]:
        """The cells by name."""
        return {cell.names[0]: cell for cell in self.root.all("cell")}

    @property
    def has_timing(self) -> bool:
        """Whether the delays belong to the process; the shipped file has made-up delays."""
        return self.source != "shipped"

    @cached_property
    def cells_to_avoid(self) -> tuple[str, ...]:
        """Cells that synthesis must not use, in the library's order.

        If a library has all cells of the shipped file, synthesis uses only these cells, so that
        both libraries give the same netlist. In any other library, synthesis leaves out the cells
        marked ``dont_use``.
        """
        wanted = _shipped_names()
        if wanted <= set(self.cells):
            return tuple(name for name in self.cells if name not in wanted)
        marked = (name for name, cell in self.cells.items() if cell.get("dont_use") == "true")
        return tuple(marked)

    @cached_property
    def inverter(self) -> str:
        """The smallest inverter."""
        return self._smallest((True, False))

    @cached_property
    def nand2_area(self) -> float:
        """Area of the smallest NAND gate of two inputs."""
        return self.area(self._smallest((True, True, True, False)))

    def area(self, cell: str) -> float:
        """Return the area of a cell in the library's unit (in known libraries, square um)."""
        return float(self.cells[cell].get("area") or 0.0)

    def _smallest(self, table: tuple[bool, ...]) -> str:
        """Return the name of the smallest cell with a single output of a given truth table."""
        found = [
            (self.area(name), name)
            for name, cell in self.cells.items()
            if name not in self.cells_to_avoid and _table_of(cell) == table
        ]
        if not found:
            raise UserError(
                f"library {self.source!r} has no inverter or no NAND gate of two inputs; "
                "allowed are libraries of standard cells with functions"
            )
        return min(found)[1]


def pins_of(cell: Group) -> dict[str, Group]:
    """Return the pins of a library cell by name."""
    return {pin.names[0]: pin for pin in cell.all("pin")}


def clock_gate_of(cell: Group) -> ClockGate | None:
    """Return the pins of a cell that is a latch-based clock gate without further inputs."""
    if cell.get("clock_gating_integrated_cell") != _LATCHED_GATE:
        return None
    pins = pins_of(cell)
    found = [
        [name for name, pin in pins.items() if pin.get(f"clock_gate_{kind}_pin") == "true"]
        for kind in ("clock", "enable", "out")
    ]
    inputs = {name for name, pin in pins.items() if pin.get("direction") == "input"}
    # the names go into a command of Yosys, separated by colons
    if not all(len(names) == 1 and re.fullmatch(r"\w+", names[0]) for names in found):
        return None
    (clock,), (enable,), (output,) = found
    return ClockGate(cell.names[0], clock, enable, output) if inputs == {clock, enable} else None


def _table_of(cell: Group) -> tuple[bool, ...] | None:
    """Return the truth table of a combinational cell with one output and at most two inputs."""
    pins = list(cell.all("pin"))
    inputs = [pin.names[0] for pin in pins if pin.get("direction") == "input"]
    functions = [f for pin in pins if (f := pin.get("function"))]
    if len(functions) != 1 or len(inputs) > 2 or any(cell.all("ff")) or any(cell.all("latch")):
        return None
    try:
        return truth_table(functions[0], inputs)
    except ValueError:
        return None


def truth_table(function: str, inputs: list[str]) -> tuple[bool, ...]:
    """Evaluate a Liberty function for all values of its inputs; the last input changes fastest.

    Operators by descending precedence: ``!`` before and ``'`` after an operand; ``^``; and, written
    ``&``, ``*`` or nothing; ``|`` or ``+``.

    Raises
    ------
    ValueError
        When the function is malformed or has a name that is no input.
    """
    tokens = re.findall(r"\w+|\S", function)
    rows = itertools.product((False, True), repeat=len(inputs))
    return tuple(_Evaluation(tokens, dict(zip(inputs, row, strict=True))).value() for row in rows)


class _Evaluation:
    """One evaluation of a function's tokens, by recursive descent."""

    def __init__(self, tokens: list[str], names: dict[str, bool]) -> None:
        self._tokens = [*tokens, ""]
        self._names = names | {"0": False, "1": True}
        self._position = 0

    def value(self) -> bool:
        result = self._or()
        if self._token:
            raise ValueError(f"function: {self._token!r} is no input and no operator")
        return result

    @property
    def _token(self) -> str:
        return self._tokens[self._position]

    def _take(self, *wanted: str) -> bool:
        taken = self._token in wanted
        self._position += taken
        return taken

    def _or(self) -> bool:
        result = self._and()
        while self._take("|", "+"):
            result |= self._and()
        return result

    def _and(self) -> bool:
        result = self._xor()
        while self._take("&", "*") or self._token in ("!", "(") or self._token in self._names:
            result &= self._xor()
        return result

    def _xor(self) -> bool:
        result = self._operand()
        while self._take("^"):
            result ^= self._operand()
        return result

    def _operand(self) -> bool:
        if self._take("!"):
            return not self._operand()
        if self._take("("):
            result = self._or()
            if not self._take(")"):
                raise ValueError(f"function: {self._token!r} where ')' must stand")
        elif self._token in self._names:
            result = self._names[self._token]
            self._position += 1
        else:
            raise ValueError(f"function: {self._token!r} is no input and no operator")
        while self._take("'"):
            result = not result
        return result


def load_liberty(path: Path | None, gating: bool = True) -> Liberty:
    """Load the library of a file, which may be packed by gzip; None for the shipped library.

    Parameters
    ----------
    gating : whether synthesis may use the library's clock gates

    Raises
    ------
    UserError
        When the file cannot be read, is broken or holds no cells.
    """
    if path is None:
        return replace(shipped_liberty(), gating=gating)
    data = read_bytes(path, _WHAT)
    try:
        text = decoded(_unpacked(data), path, _WHAT)
        root = parse_liberty(text)
        check_library(root)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{_WHAT} {str(path)!r}: {reason}") from None
    return Liberty(str(path), text, root, gating)


def _unpacked(data: bytes) -> bytes:
    """Return the unpacked content of a gzip file, or the data itself if not packed."""
    if data[:2] != b"\x1f\x8b":
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        unpacked = file.read(LARGEST_FILE + 1)
    if len(unpacked) > LARGEST_FILE:
        raise ValueError(f"larger than {LARGEST_FILE:,} bytes when it is unpacked")
    return unpacked


@cache
def shipped_liberty() -> Liberty:
    """Load the area-only library of SkyWater 130 nm high-density cells, shipped in the package."""
    text = (resources.files("kvtq_hw.estimates") / _SHIPPED).read_text("utf-8")
    return Liberty("shipped", text, parse_liberty(text))


def _shipped_names() -> set[str]:
    return set(shipped_liberty().cells)
