"""Timing: longest path and highest clock of each block, from a full library."""

from __future__ import annotations

from kvtq_hw.report.content import Inputs, Section, Table
from kvtq_hw.report.sections.recorded import recorded

__all__ = ["build"]


def build(inputs: Inputs) -> Section | None:
    """Make the tables of `kvtq-hw timing`."""
    tables = tuple(
        Table(
            f"Longest paths of {entry.config} in {entry.data['library']['name']}",
            "measured",
            entry.command,
            ("block", "ps", "MHz", "by"),
            tuple(
                (block, round(path["delay_ps"]), round(path["fmax_mhz"]), path["tool"])
                for block, path in entry.data["paths"].items()
            ),
            entry.note,
        )
        for entry in recorded(inputs.results, "timing", inputs.config)
    )
    if not tables:
        return None
    return Section(
        "Timing",
        "Static timing of the mapped netlist before place and route: wires have no delay, and no "
        "path leads through a memory. Total: paths through several blocks as well.",
        tables,
    )
