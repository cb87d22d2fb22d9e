"""Rows of quality that `kvtq-hw eval --json` wrote, for the sections that show them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from kvtq_hw.errors import UserError

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
    for file in sorted(folder.glob("*.json")):
        try:
            result = json.loads(file.read_text("utf-8"))
            if "segments" not in result:
                continue  # another benchmark's
            setting = f"{result['text']}, {result['segments']} x {result['context']} tokens"
            rows += [
                (
                    -result["segments"],
                    QualityRow(
                        file.name,
                        setting,
                        row["code"],
                        row["attention"],
                        row["bits_per_element"],
                        row["perplexity"],
                        row["perplexity_ratio"],
                        row["kld"],
                        row["top1_agreement"],
                        row.get("needle"),
                    ),
                )
                for row in result["rows"]
            ]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"results: {str(file)!r} is no file of kvtq-hw eval: {error}") from None
    if not rows:
        raise UserError(f"results: {str(folder)!r} holds no file of kvtq-hw eval --json")
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1].bits))]
