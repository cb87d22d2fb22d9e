"""Rows of quality that `kvtq-hw eval --json` wrote, for the sections that show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import validated
from kvtq_hw.estimates.quality_files import QualityFile
from kvtq_hw.report.sections.recorded import read_results

__all__ = ["QualityRow", "quality_rows"]


@dataclass(frozen=True)
class QualityRow:
    """One code's row; `file` is where it stands. Rows are comparable within one setting."""

    file: str
    setting: str
    code: str
    arithmetic: str
    bits: float
    perplexity: float
    ratio: float
    divergence: float
    agreement: float
    needle: float | None


def quality_rows(folder: Path) -> list[QualityRow]:
    """Rows of all result files of a folder, those of the most segments first.

    Raises
    ------
    UserError
        When there is none, or a file cannot be read.
    """
    rows = []
    for name, data in read_results(folder):
        if "segments" not in data:
            continue  # another benchmark's
        result = validated(QualityFile, data, f"result {str(folder / name)!r}")
        setting = f"{result.text}, {result.segments} x {result.context} tokens"
        rows += [
            (
                -result.segments,
                QualityRow(
                    name,
                    setting,
                    row.code,
                    row.attention,
                    row.bits_per_element,
                    row.perplexity,
                    row.perplexity_ratio,
                    row.kld,
                    row.top1_agreement,
                    row.needle,
                ),
            )
            for row in result.rows
        ]
    if not rows:
        raise UserError(f"results: {str(folder)!r} holds no file of kvtq-hw eval --json")
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1].bits))]
