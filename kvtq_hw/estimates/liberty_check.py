"""Checks of a Liberty file before anything is measured with it.

A malformed name or number makes Yosys and abc stop in the middle of their work, or drop a cell
without a message. Everything that this package itself reads from a library is checked here, once.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

from kvtq_hw.contract.errors import shown
from kvtq_hw.estimates.liberty_format import Group

__all__ = ["check_library"]

#: Allowed names of cells: no character that Yosys takes for a pattern or the end of a word.
_CELL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.$-]{0,254}")
_PIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.$\[\]:-]{0,254}")

#: Most names, operators and brackets per function: every row of the truth table evaluates them all.
_MOST_TOKENS = 100
_MOST_INPUTS = 12

_FUNCTIONS = ("function", "three_state")
_STATE_FUNCTIONS = ("next_state", "clocked_on", "clear", "preset")
_TEMPLATES = ("lu_table_template", "power_lut_template")


def check_library(library: Group) -> None:
    """Check names, numbers, functions and tables of a library.

    Raises
    ------
    ValueError
        One line with the first fault.
    """
    if len(library.names) != 1 or not library.names[0]:
        raise ValueError("the library has no name, or several")
    _number(library, "nom_voltage", "the library", positive=True)
    unit = library.attributes.get("capacitive_load_unit")
    if unit is not None and (len(unit) != 2 or not _is_number(unit[0]) or not float(unit[0]) > 0):
        raise ValueError(f"capacitive_load_unit: {shown(unit)} is no size and unit")
    templates = {
        _name(template, _PIN_NAME): template
        for kind in _TEMPLATES
        for template in library.all(kind)
    }
    cells: set[str] = set()
    for cell in library.all("cell"):
        name = _name(cell, _CELL_NAME)
        if name in cells:
            raise ValueError(f"cell {name} is there twice")
        cells.add(name)
        _check_cell(cell, f"cell {name}", templates)
    if not cells:
        raise ValueError("it holds no cells")


def _check_cell(cell: Group, place: str, templates: dict[str, Group]) -> None:
    _number(cell, "area", place)
    pins: set[str] = set()
    for pin in cell.all("pin"):
        name = _name(pin, _PIN_NAME)
        if name in pins:
            raise ValueError(f"{place}: pin {name} is there twice")
        pins.add(name)
        of_pin = f"{place}: pin {name}"
        _number(pin, "capacitance", of_pin)
        _functions(pin, _FUNCTIONS, of_pin)
        for power in pin.all("internal_power"):
            for table in (*power.all("rise_power"), *power.all("fall_power")):
                _check_table(table, of_pin, templates)
    for flip_flop in cell.all("ff"):
        if len(flip_flop.names) != 2 or not all(flip_flop.names):
            raise ValueError(
                f"{place}: a flip-flop has the names {shown(flip_flop.names)}, not two"
            )
        _functions(flip_flop, _STATE_FUNCTIONS, place)


def _functions(group: Group, attributes: tuple[str, ...], place: str) -> None:
    for attribute in attributes:
        tokens = re.findall(r"\w+|\S", group.get(attribute) or "")
        names = {token for token in tokens if re.match(r"[A-Za-z_]", token)}
        if len(tokens) > _MOST_TOKENS or len(names) > _MOST_INPUTS:
            raise ValueError(
                f"{place}: {attribute} is too long; allowed are {_MOST_INPUTS} inputs and "
                f"{_MOST_TOKENS} names and operators"
            )


def _check_table(table: Group, place: str, templates: dict[str, Group]) -> None:
    """Check that a table of internal power has a number for every combination of axis values."""
    rows = [_numbers(row, place) for row in table.attributes.get("values", [])]
    template = templates.get(table.names[0]) if table.names else None
    if template is None:
        shape = (1, 1)
    else:
        axes = list(_axes(table, template, place))
        if not axes:
            raise ValueError(f"{place}: a table of power has no axis")
        shape = (len(axes[0]), len(axes[1])) if len(axes) > 1 else (1, len(axes[0]))
    if tuple(map(len, rows)) != (shape[1],) * shape[0]:
        raise ValueError(f"{place}: a table of power has other sizes than its axes")


def _axes(table: Group, template: Group, place: str) -> Iterator[list[float]]:
    for number in (1, 2):
        if template.get(f"variable_{number}") is None:
            return
        text = table.get(f"index_{number}") or template.get(f"index_{number}") or ""
        axis = _numbers(text, place)
        if not axis or any(left >= right for left, right in itertools.pairwise(axis)):
            raise ValueError(f"{place}: an axis of a table is empty or does not rise")
        yield axis


def _name(group: Group, allowed: re.Pattern[str]) -> str:
    if not group.names or not allowed.fullmatch(group.names[0]):
        raise ValueError(
            f"a {group.kind} has the name {shown(', '.join(group.names))}, which is none"
        )
    return group.names[0]


def _number(group: Group, attribute: str, place: str, positive: bool = False) -> None:
    """Check that an attribute, if present, is a number of zero or more, or positive."""
    text = group.get(attribute)
    if text is None:
        return
    if not _is_number(text) or float(text) < 0 or (positive and float(text) == 0):
        kind = "a positive number" if positive else "a number from 0 on"
        raise ValueError(f"{place}: {attribute}: {shown(text)} is not allowed; must be {kind}")


def _numbers(text: str, place: str) -> list[float]:
    parts = text.replace(",", " ").split()
    for part in parts:
        if not _is_number(part):
            raise ValueError(f"{place}: {shown(part)} in a table is no finite number")
    return [float(part) for part in parts]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
