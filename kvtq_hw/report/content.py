"""What a section is made of: plain values that go to JSON and come back the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig

__all__ = ["Cell", "Inputs", "Plot", "Section", "Series", "Table", "Tag"]

#: measured: a tool or a run said so; derived: computed from measured or exact numbers; projected:
#: computed with a number from the literature.
Tag = Literal["measured", "derived", "projected"]
_TAGS = ("measured", "derived", "projected")
Cell = str | int | float | None


@dataclass(frozen=True)
class Inputs:
    """What a report is about.

    config : the engine
    codes : cache codes that are compared, the first one in most detail
    model : name of the language model
    results : folder with files of `kvtq-hw eval --json`
    """

    config: EngineConfig
    codes: tuple[CacheCode, ...]
    model: str
    results: Path


@dataclass(frozen=True)
class Table:
    """Rows under a heading; floats come rounded to what is known of them.

    Raises
    ------
    ValueError
        For an unknown tag, an empty command, or a row that is not as long as the heading.
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
    """Points of a plot under one name; `labels` are written beside them."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A picture of series: joined points, or loose ones.

    Raises
    ------
    ValueError
        For an unknown tag, an empty command, or a plot without points.
    """

    title: str
    tag: Tag
    command: str
    kind: Literal["line", "scatter", "bar"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False

    def __post_init__(self) -> None:
        _check_origin(self.title, self.tag, self.command)
        if not any(series.x for series in self.series):
            raise ValueError(f"plot {self.title!r} has no points")


@dataclass(frozen=True)
class Section:
    """A heading, what it says in a sentence or two, tables and plots.

    Raises
    ------
    ValueError
        When it has neither a table nor a plot.
    """

    title: str
    lead: str
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.tables and not self.plots:
            raise ValueError(f"section {self.title!r} has neither a table nor a plot")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _check_origin(title: str, tag: str, command: str) -> None:
    if tag not in _TAGS:
        raise ValueError(f"{title!r}: tag {tag!r} is unknown; allowed are {', '.join(_TAGS)}")
    if not command:
        raise ValueError(f"{title!r}: no command; a number needs the one that made it")
