"""Quality: a model's quality in each cache format, and the Pareto plot."""

from __future__ import annotations

from kvtq_hw.report.content import Inputs, Plot, Section, Series, Table
from kvtq_hw.report.sections.results import QualityRow, quality_rows

__all__ = ["build"]

_FAMILIES = (
    ("balanced:", "balanced ternary"),
    ("residual:", "residual ternary"),
    ("kvtq:", "KVTQ as published"),
    ("kivi:", "KIVI"),
    ("oscar", "OSCAR"),
    ("transformers:", "QuantizedCache"),
    ("int", "integers"),
)
# A format with a larger perplexity ratio would flatten the plot; it is shown in the table only.
_WORST_SHOWN = 1.5


def build(inputs: Inputs) -> Section:
    """Make a table and a Pareto plot per setting, from the result files."""
    rows = quality_rows(inputs.results)
    tables, plots = [], []
    for setting in dict.fromkeys(row.setting for row in rows):
        chosen = [row for row in rows if row.setting == setting]
        command = "kvtq-hw eval --json (" + ", ".join(dict.fromkeys(r.file for r in chosen)) + ")"
        tables.append(
            Table(
                f"Quality on {setting}",
                "measured",
                command,
                (
                    "code",
                    "arithmetic",
                    "true bits",
                    "perplexity",
                    "against unquantized",
                    "KL divergence",
                    "same top-1",
                    "needles found",
                ),
                tuple(_cells(row) for row in chosen),
            )
        )
        series = _series(chosen)
        if series:
            plots.append(
                Plot(
                    f"Bits against perplexity, {setting}",
                    "measured",
                    command,
                    "scatter",
                    "true bits per cached number",
                    "perplexity over unquantized",
                    series,
                    "Lower left is better: fewer bits, and a text as likely as without rounding.",
                    log_x=True,
                )
            )
    return Section(
        "Quality",
        "Teacher-forced through the packed cache, scales and tiers counted in the bits. Lower left "
        "is better.",
        tuple(tables),
        tuple(plots),
    )


def _cells(row: QualityRow) -> tuple[str | float | None, ...]:
    return (
        row.code,
        row.arithmetic,
        round(row.bits, 3),
        round(row.perplexity, 3),
        f"{100 * (row.ratio - 1):+.2f} %",
        round(row.divergence, 4),
        f"{100 * row.agreement:.1f} %",
        None if row.needle is None else f"{100 * row.needle:.0f} %",
    )


def _series(rows: list[QualityRow]) -> tuple[Series, ...]:
    shown = [row for row in rows if row.bits < 16 and row.ratio <= _WORST_SHOWN]
    found = []
    for prefix, name in _FAMILIES:
        members = [row for row in shown if row.code.startswith(prefix)]
        if members:
            found.append(
                Series(name, tuple(r.bits for r in members), tuple(r.ratio for r in members))
            )
    return tuple(found)
