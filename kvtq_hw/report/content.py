"""Content of a section: tables and plots of plain values that survive a round trip to JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.estimates.traffic import MEMORIES

__all__ = ["Cell", "Control", "Inputs", "Panel", "Plot", "Section", "Series", "Table", "Tag"]

#: measured: reported by a tool or a run; derived: computed from measured or exact numbers;
#: projected: computed with a number from the literature.
Tag = Literal["measured", "derived", "projected"]
_TAGS = ("measured", "derived", "projected")
Cell = str | int | float | None


@dataclass(frozen=True)
class Inputs:
    """Subject of a report.

    config : configuration of the engine
    codes : cache codes to compare, the first code in most detail
    model : name of the language model
    results : folder with files of `kvtq-hw eval --json`
    memory_pj : picojoules per bit of the KV memory
    """

    config: EngineConfig
    codes: tuple[CacheCode, ...]
    model: str
    results: Path
    memory_pj: float = MEMORIES["LPDDR4"].picojoules_per_bit


@dataclass(frozen=True)
class Table:
    """A table: rows under a heading; floats are already rounded to their known digits.

    Raises
    ------
    ValueError
        For an unknown tag, an empty command, or a row whose length differs from the heading's.
    """

    title: str
    tag: Tag
    command: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        _check_origin(self.title, self.tag, self.command)
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: a row has {len(row)} cells, its heading "
                    f"{len(self.columns)}"
                )


@dataclass(frozen=True)
class Series:
    """A series of points under one name; `labels` are written beside the points.

    `joined` makes a line without marks of the series in a plot of separate points.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...] = ()
    joined: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot of series: points joined by lines or separate, or bars stacked on one another.

    Parameters
    ----------
    reading : one sentence that says what the plot shows

    Raises
    ------
    ValueError
        For an unknown tag, an empty command, a plot without points or without a reading.
    """

    title: str
    tag: Tag
    command: str
    kind: Literal["line", "scatter", "bar"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    reading: str
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        _check_origin(self.title, self.tag, self.command)
        if not any(series.x for series in self.series):
            raise ValueError(f"plot {self.title!r} has no points")
        if not self.reading:
            raise ValueError(f"plot {self.title!r} has no sentence that says what it shows")


@dataclass(frozen=True)
class Control:
    """A control of a panel: a choice of `options` if there are any, else a number.

    name, label : in the state of the panel, and on the page
    value : the value at first, one of the options
    options : values and what the page calls them
    least, most : range of a number
    """

    name: str
    label: str
    value: str
    options: tuple[tuple[str, str], ...] = ()
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A panel whose numbers follow its controls, without a server.

    Parameters
    ----------
    said : a sentence that says what the controls are set to at first
    table : numbers at first, also for readers without JavaScript
    grid : numbers for every choice, which the page's script looks up

    Raises
    ------
    ValueError
        For a control whose value is none of its options, or outside its range.
    """

    controls: tuple[Control, ...]
    said: str
    table: Table
    grid: dict[str, Any]

    def __post_init__(self) -> None:
        for control in self.controls:
            values = [value for value, _ in control.options]
            if values:
                fits = control.value in values
            else:
                fits = control.least <= float(control.value) <= control.most
            if not fits:
                raise ValueError(f"control {control.name!r}: {control.value!r} is not allowed")


@dataclass(frozen=True)
class Section:
    """A section of a report: a heading, one or two sentences, a panel, tables and plots.

    Raises
    ------
    ValueError
        When the section has neither a table nor a plot nor a panel.
    """

    title: str
    lead: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = field(default=())
    panel: Panel | None = None

    def __post_init__(self) -> None:
        if not self.tables and not self.plots and not self.panel:
            raise ValueError(f"section {self.title!r} has neither a table nor a plot nor a panel")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def _check_origin(title: str, tag: str, command: str) -> None:
    if tag not in _TAGS:
        raise ValueError(f"{title!r}: tag {tag!r} is unknown; allowed are {', '.join(_TAGS)}")
    if not command:
        raise ValueError(f"{title!r}: no command; a number needs the one that made it")
