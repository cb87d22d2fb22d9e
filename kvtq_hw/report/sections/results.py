"""Reads rows of quality from files of `kvtq-hw eval --json`, for the sections that show them."""

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
    """One code's row, and the name of its `file`. Rows are comparable within one setting.

    A setting is a model and a text.
    """

    file: str
    model: str
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
    """Return the rows of all result files of a folder, files with the most segments first.

    Raises
    ------
    UserError
        When the folder has no result file, or a file cannot be read.
    """
    rows = []
    for name, data in read_results(folder):
        if "segments" not in data:
            continue  # a file of another benchmark
        result = validated(QualityFile, data, f"result {str(folder / name)!r}")
        setting = f"{result.model}: {result.text}, {result.segments} x {result.context} tokens"
        rows += [
            (
                -result.segments,
                QualityRow(
                    name,
                    result.model,
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
