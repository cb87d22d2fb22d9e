"""Write verdicts as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mutants.judge import Verdict

__all__ = ["line", "markdown", "summary"]

_OUTCOMES = ("killed", "timed out", "survived", "equivalent")


def line(verdict: Verdict) -> str:
    """Return one verdict as text for the terminal; for a survivor also the change."""
    mutant = verdict.mutant
    text = f"{verdict.outcome}: {mutant.file}:{mutant.line}"
    if verdict.outcome != "survived":
        return f"{text} ({verdict.by})"
    return f"{text} ({mutant.where})\n  - {mutant.before}\n  + {mutant.after}"


def summary(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Count outcomes per area; the score is the share of noticed among non-equivalent mutants."""
    areas = []
    for area in sorted({verdict.mutant.area for verdict in verdicts}):
        counts = Counter(v.outcome for v in verdicts if v.mutant.area == area)
        noticed, asked = (
            counts["killed"] + counts["timed out"],
            counts.total() - counts["equivalent"],
        )
        score = noticed / asked if asked else None
        row = {name: counts[name] for name in _OUTCOMES}
        areas.append({"area": area, "mutants": counts.total(), **row, "score": score})
    return areas


def markdown(about: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """Return a page in Markdown: scores, survivors, and every mutant with its outcome."""
    lines = [
        "# Mutation testing",
        "",
        ", ".join(f"{key} {value}" for key, value in about.items()),
        "",
    ]
    lines += [f"| area | mutants | {' | '.join(_OUTCOMES)} | score |", "|---" * 7 + "|"]
    for row in summary(verdicts):
        score = "-" if row["score"] is None else f"{100 * row['score']:.1f} %"
        counts = " | ".join(str(row[name]) for name in _OUTCOMES)
        lines.append(f"| {row['area']} | {row['mutants']} | {counts} | {score} |")
    lines += ["", "## Survivors", ""]
    for verdict in verdicts:
        if verdict.outcome == "survived":
            mutant, asked = verdict.mutant, ", ".join(verdict.asked)
            lines += [f"{mutant.file}:{mutant.line}, {mutant.where}; asked: {asked}", "", "```diff"]
            lines += [f"-{text}" for text in mutant.before.splitlines()]
            lines += [*(f"+{text}" for text in mutant.after.splitlines()), "```", ""]
    lines += ["## Mutants", "", "| place | mutant | outcome | by |", "|---|---|---|---|"]
    for verdict in verdicts:
        mutant = verdict.mutant
        change = f"{mutant.before} -> {mutant.after}".replace("\n", " ").replace("|", "\\|")
        place = f"{mutant.file}:{mutant.line}"
        lines.append(f"| {place} | `{change}` | {verdict.outcome} | {verdict.by} |")
    return "\n".join(lines) + "\n"
