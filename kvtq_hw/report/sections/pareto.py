"""Pareto plots: quality against tokens per second and square millimetre, and against energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtq_hw.estimates.frontier import frontier
from kvtq_hw.report.content import Plot, Series
from kvtq_hw.report.sections.formats import short_name
from kvtq_hw.report.sections.recorded import Recorded
from kvtq_hw.report.sections.system_energy import Entry

__all__ = ["divergences", "per_area", "per_energy"]

_LOSS = "KL divergence from unquantized, nats"


@dataclass(frozen=True)
class _Point:
    """A format on an engine: how much it gives, and how far it is from the unquantized model."""

    label: str
    ternary: bool
    gain: float
    loss: float


def divergences(entries: Sequence[Recorded]) -> dict[str, float]:
    """Return the KL divergence by code, as comparisons have recorded it."""
    return {
        row["code"]: row["quality"]["kld"]
        for entry in entries
        for rows in entry.data["ways"].values()
        for row in rows
        if row["quality"]
    }


def per_area(entry: Recorded) -> Plot | None:
    """Draw the engines of equal memory bandwidth of a comparison; None without any."""
    ways = entry.data["ways"].items()
    rows: list[dict[str, Any]] = next(
        (rows for way, rows in ways if way.startswith("equal memory")), []
    )

    def rate(row: Mapping[str, Any]) -> float:
        return 1 / (row["effective_cycles"] * row["um2"])

    int8 = next((rate(row) for row in rows if row["name"] == "INT8"), None)
    if int8 is None:
        return None
    points = [
        _Point(
            short_name(row["name"]),
            row["name"].startswith("ternary"),
            rate(row) / int8,
            row["quality"]["kld"],
        )
        for row in rows
        if row["quality"]
    ]
    tokens = f"{entry.data['tokens']:,} tokens"
    return _plot(
        f"Quality against speed per area, {tokens}, equal memory bandwidth",
        entry.command,
        "tokens per second and mm2, INT8 = 1",
        "more speed per area",
        points,
    )


def per_energy(
    model: str,
    tokens: int,
    entries: Sequence[Entry],
    memory_pj: float,
    losses: Mapping[str, float],
    command: str,
) -> Plot | None:
    """Draw formats by energy per token; None if no format's quality was measured."""
    points = [
        _Point(
            f"{short_name(entry.name)}, {'{}/{}'.format(*entry.measured.planes)}"
            if entry.measured.config.is_ternary
            else entry.name,
            entry.measured.config.is_ternary,
            1e6 / entry.energy.total(memory_pj),
            losses[entry.code],
        )
        for entry in entries
        if entry.code in losses
    ]
    return _plot(
        f"Quality against tokens per joule, {model}, {tokens:,} tokens, {memory_pj:g} pJ/bit",
        command,
        "tokens per joule of attention and its memories",
        "less energy",
        points,
    )


def _plot(title: str, command: str, axis: str, gain: str, points: Sequence[_Point]) -> Plot | None:
    if not points:
        return None
    best = frontier(points, lambda point: (point.loss, -point.gain))
    series = [
        Series(
            name,
            tuple(point.gain for point in chosen),
            tuple(point.loss for point in chosen),
            tuple(point.label for point in chosen),
        )
        for name, chosen in (
            ("ternary, several digits", [point for point in points if point.ternary]),
            ("integers", [point for point in points if not point.ternary]),
        )
        if chosen
    ]
    line = Series(
        "nothing is better in both",
        tuple(point.gain for point in best),
        tuple(point.loss for point in best),
        joined=True,
    )
    beaten = [point.label for point in points if point not in best]
    behind = f"; behind it: {'; '.join(beaten)}" if beaten else ""
    return Plot(
        title,
        "derived",
        command,
        "scatter",
        axis,
        _LOSS,
        (*series, line),
        f"Lower right is better; along the line {gain} costs quality, from "
        f"{best[0].label} to {best[-1].label}{behind}.",
        log_y=True,
    )
