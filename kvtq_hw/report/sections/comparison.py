"""Comparison: engines with ternary lanes and engines with multipliers, three ways."""

from __future__ import annotations

from kvtq_hw.report.content import Inputs, Section, Table
from kvtq_hw.report.sections.recorded import recorded

__all__ = ["build"]

_TAGS = (
    "Areas and perplexity are measured; cycles, tokens/s and bytes are derived, of one KV head; "
    "those of a table of digits are of the mean layer."
)


def build(inputs: Inputs) -> Section | None:
    """Make the tables of `kvtq-hw compare`, one per quantity that is held equal."""
    tables = []
    for entry in recorded(inputs.results, "compare", inputs.config):
        tokens = entry.data["tokens"]
        for way, rows in entry.data["ways"].items():
            int8 = next(row for row in rows if row["name"] == "INT8")
            tables.append(
                Table(
                    f"{entry.config}, {tokens} tokens, {way}",
                    "measured",
                    entry.command,
                    (
                        "engine",
                        "lanes",
                        "planes per cycle",
                        "um2",
                        "area, INT8 = 1",
                        "um2 a lane",
                        "cycles",
                        "tokens/s, INT8 = 1",
                        "bytes",
                        "perplexity over unquantized",
                    ),
                    tuple(
                        (
                            row["name"],
                            row["lanes"],
                            f"{row['key_planes']}/{row['value_planes']}",
                            round(row["um2"]),
                            round(row["um2"] / int8["um2"], 2),
                            round(row["lane_um2"]),
                            row["effective_cycles"],
                            round(int8["effective_cycles"] / row["effective_cycles"], 2),
                            row["bytes"],
                            row["quality"] and round(row["quality"]["perplexity_ratio"], 4),
                        )
                        for row in rows
                    ),
                    " ".join([_TAGS, entry.note]).strip(),
                )
            )
    if not tables:
        return None
    return Section(
        "Comparison with multipliers",
        "INT8 and INT4 engines of the same generator: same streams, softmax and blocks, with "
        "multipliers in the lanes. Area of cells, SRAM aside; one clock for all. INT4 conditioned "
        "has the rotation, centring, feedback, sinks and window of the ternary codes: sinks and "
        "window are in 8 bits, counted as two slices per element in lanes of 4 bits, without the "
        "area that this would take.",
        tuple(tables),
    )
