"""Sweep: area, cycles, bytes and quality over the design space."""

from __future__ import annotations

from kvtq_hw.report.content import Cell, Inputs, Plot, Section, Series, Table
from kvtq_hw.report.sections.recorded import Recorded, recorded

__all__ = ["build"]

_COLUMNS = {
    "code": "code",
    "um2": "um2",
    "cycles": "cycles",
    "bytes": "bytes",
    "bits_per_element": "bits per element",
    "perplexity_ratio": "perplexity over unquantized",
}


def build(inputs: Inputs) -> Section | None:
    """Make the tables and plots of `kvtq-hw sweep`."""
    entries = recorded(inputs.results, "sweep", inputs.config)
    if not entries:
        return None
    return Section(
        "Design space",
        "Whole engines over a grid of configurations and codes. Areas are measured, cycles and "
        "bytes derived.",
        tuple(_table(entry) for entry in entries),
        tuple(_plot(entry) for entry in entries),
    )


def _table(entry: Recorded) -> Table:
    names = list(entry.data["rows"][0])
    axes = names[: names.index("code")]  # swept fields come first
    return Table(
        f"From {entry.config}, {entry.data['tokens']} tokens",
        "measured",
        entry.command,
        (*axes, *_COLUMNS.values()),
        tuple(tuple(_cell(row[name]) for name in (*axes, *_COLUMNS)) for row in entry.data["rows"]),
        entry.note,
    )


def _cell(value: Cell) -> Cell:
    if isinstance(value, float):
        return round(value) if value >= 1000 else round(value, 4)
    return value


def _plot(entry: Recorded) -> Plot:
    rows = entry.data["rows"]
    return Plot(
        f"Cycles and area, from {entry.config}",
        "measured",
        entry.command,
        "scatter",
        "um2 of cells",
        "cycles of one KV head",
        tuple(
            Series(
                code,
                tuple(row["um2"] for row in rows if row["code"] == code),
                tuple(float(row["cycles"]) for row in rows if row["code"] == code),
            )
            for code in dict.fromkeys(row["code"] for row in rows)
        ),
        "Lower left is better: each point is a whole engine, and more lanes buy cycles with area.",
    )
