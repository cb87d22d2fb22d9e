"""Plots of recorded comparisons: area by group of blocks, and the engines' roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvtq_hw.report.content import Plot, Series
from kvtq_hw.report.sections.formats import RIVALS, TABLES, short_name
from kvtq_hw.report.sections.recorded import Recorded

__all__ = ["areas", "roofline"]

#: Blocks that are one segment of a bar; every other block is in the last one.
_GROUPS = {
    "value lanes": ("select_accumulate", "multiply_accumulate"),
    "key lanes": ("select_add", "multiply_add"),
    "scalers": ("plane_scaler", "weight_scaler"),
    "softmax, normalizer": ("online_softmax", "normalizer"),
}
_REST = "queries, control"

#: Widths of a memory port in bits per cycle, of the lines of a roofline.
_PORT_BITS = (32, 64, 128, 256)


def areas(entry: Recorded) -> Plot:
    """Draw each engine of a comparison once: its area by group of blocks."""
    bars: dict[str, Mapping[str, Any]] = {}
    seen = set()
    for _, row in _engines(entry):
        integer = None if row["name"].startswith("ternary") else row["name"].split()[0]
        engine = integer, row["lanes"], row["key_planes"], row["value_planes"]
        if engine not in seen:
            bars[f"{integer or 'ternary'}, {_shape(row)}"] = row
            seen.add(engine)
    bars = dict(sorted(bars.items(), key=lambda bar: bar[1]["um2"]))
    shares = [_by_group(row["blocks"])["value lanes"] / row["um2"] for row in bars.values()]
    alike = next(rows for way, rows in entry.data["ways"].items())
    first = next((row for row in alike if row["name"].startswith("ternary")), alike[0])
    int8 = next(row for row in alike if row["name"] == "INT8")
    return Plot(
        f"Area of the compared engines, {entry.data['tokens']:,} tokens",
        "measured",
        entry.command,
        "bar",
        "mm2 of cells",
        "",
        tuple(
            Series(
                group,
                tuple(_by_group(row["blocks"])[group] / 1e6 for row in bars.values()),
                (),
                tuple(bars),
            )
            for group in (*_GROUPS, _REST)
        ),
        f"Value lanes, with their accumulators, are {100 * min(shares):.0f} to "
        f"{100 * max(shares):.0f} % of every engine; an INT8 engine of {int8['lanes']} lanes has "
        f"{int8['um2'] / first['um2']:.1f} times the area of {first['lanes']} lanes of one digit.",
    )


def roofline(entry: Recorded) -> Plot:
    """Draw engines by bytes and cycles per token, and the lines of memories of several widths."""
    tokens = entry.data["tokens"]
    shown = [*RIVALS, *(f"ternary {name.removesuffix('.toml')}" for name in TABLES)]
    first = next((r["name"] for _, r in _engines(entry) if r["name"].startswith("ternary")), None)
    points: dict[str, tuple[float, float, bool]] = {}
    for way, row in _engines(entry):
        if way.startswith("equal memory") or row["name"] not in (*shown, first):
            continue
        ternary = row["name"].startswith("ternary")
        planes = f", {row['key_planes']}/{row['value_planes']}" if ternary else ""
        at = row["bytes"] / tokens, 1000 * tokens / row["cycles"]
        points[f"{short_name(row['name'])}{planes}"] = *at, ternary
    least, most = (limit(x for x, _, _ in points.values()) for limit in (min, max))
    steps = [0.9 * least + (1.1 * most - 0.9 * least) * step / 32 for step in range(33)]
    series = [
        Series(
            name,
            tuple(x for x, _, t in points.values() if t == ternary),
            tuple(y for _, y, t in points.values() if t == ternary),
            tuple(label for label, (*_, t) in points.items() if t == ternary),
        )
        for name, ternary in (("ternary engine", True), ("integer engine", False))
    ]
    lines = [
        Series(
            f"memory, {bits} bits per cycle",
            tuple(steps),
            tuple(1000 * bits / 8 / x for x in steps),
            (*[""] * 32, f"{bits} bits"),
            joined=True,
        )
        for bits in _PORT_BITS
    ]
    return Plot(
        f"Roofline: engines and memories, {tokens:,} tokens, {entry.data['config']['lanes']} lanes",
        "derived",
        entry.command,
        "scatter",
        "bytes per cached token of a KV head",
        "tokens per 1000 cycles",
        (*series, *lines),
        "A point above a line (a memory's bits per cycle) waits for that memory, a point below it "
        "is limited by its engine; fewer bytes, to the left, let a memory feed a faster engine.",
        log_y=True,
    )


def _engines(entry: Recorded) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a comparison, each with what is held equal."""
    for way, rows in entry.data["ways"].items():
        for row in rows:
            yield way, row


def _shape(row: Mapping[str, Any]) -> str:
    lanes = f"{row['lanes']} lanes"
    if not row["name"].startswith("ternary"):
        return lanes
    return f"{lanes}, {row['key_planes']}/{row['value_planes']}"


def _by_group(blocks: Mapping[str, float]) -> dict[str, float]:
    """Return the area of each group of blocks; blocks of no group are the rest."""
    found = dict.fromkeys((*_GROUPS, _REST), 0.0)
    for block, um2 in blocks.items():
        group = next((name for name, members in _GROUPS.items() if block in members), _REST)
        found[group] += um2
    return found
