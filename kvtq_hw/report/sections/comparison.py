"""Comparison: engines of ternary lanes and of multipliers, three ways."""

from __future__ import annotations

from kvtq_hw.report.content import Inputs, Section, Table
from kvtq_hw.report.sections.recorded import recorded

__all__ = ["build"]


def build(inputs: Inputs) -> Section | None:
    """Tables of `kvtq-hw compare`, one for each thing that is held equal."""
    tables = []
    for entry in recorded(inputs.results, "compare", inputs.config):
        tokens = entry.data["tokens"]
        for way, rows in entry.data["ways"].items():
            first = rows[0]
            tables.append(
                Table(
                    f"{entry.config}, {tokens} tokens, {way}",
                    "measured",
                    entry.command,
                    (
                        "engine",
                        "lanes",
                        "planes a cycle",
                        "um2",
                        "area, first = 1",
                        "um2 a lane",
                        "cycles",
                        "tokens/s, first = 1",
                        "bytes",
                        "perplexity over unquantized",
                    ),
                    tuple(
                        (
                            row["name"],
                            row["lanes"],
                            f"{row['key_planes']}/{row['value_planes']}",
                            round(row["um2"]),
                            round(row["um2"] / first["um2"], 2),
                            round(row["lane_um2"]),
                            row["effective_cycles"],
                            round(first["effective_cycles"] / row["effective_cycles"], 2),
                            row["bytes"],
                            row["quality"] and round(row["quality"]["perplexity_ratio"], 4),
                        )
                        for row in rows
                    ),
                    " ".join(["Cycles and bytes are derived.", entry.note]).strip(),
                )
            )
    if not tables:
        return None
    return Section(
        "Comparison with multipliers",
        "INT8 and INT4 engines of the same generator: same streams, softmax and blocks, with "
        "multipliers in the lanes. Area of cells, SRAM aside; one clock for all.",
        tuple(tables),
    )
