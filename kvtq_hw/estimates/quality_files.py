"""Reads and checks result files of `kvtq-hw eval --json`, before any long work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import Schema, read_as

__all__ = ["QualityFile", "QualityResult", "QualityRow", "quality_of", "read_quality"]

_Share = Annotated[float, Field(ge=0, le=1)]


class QualityRow(Schema):
    """Schema of one code's measurements.

    `kvtq_hw.commands.frame.evaluation.EvalRow` documents the fields.
    """

    code: Annotated[str, Field(min_length=1, max_length=1000)]
    attention: str
    bits_per_element: PositiveFloat
    perplexity: PositiveFloat
    perplexity_ratio: PositiveFloat
    kld: float
    top1_agreement: _Share
    tokens: PositiveInt
    needle: _Share | None
    needles: Annotated[int, Field(ge=0)]


class QualityFile(Schema):
    """Schema of a result file: its rows, and the model and text of the measurement."""

    model: str
    model_fingerprint: str
    text: str
    text_sha256: str
    context: PositiveInt
    segments: PositiveInt
    rows: Annotated[list[QualityRow], Field(min_length=1)]


@dataclass(frozen=True)
class QualityResult:
    """A result file: its name and content."""

    file: str
    content: QualityFile


def read_quality(files: Iterable[Path]) -> list[QualityResult]:
    """Read result files of `kvtq-hw eval --json`.

    Raises
    ------
    UserError
        One line, when a file is no result of `kvtq-hw eval`, or the files are of several models.
    """
    what = "result of kvtq-hw eval"
    results = [QualityResult(file.name, read_as(QualityFile, file, what)) for file in files]
    for result in results:
        first = results[0]
        if result.content.model_fingerprint != first.content.model_fingerprint:
            (one, of_one), (other, of_other) = (
                (x.file, f"{x.content.model!r}, weights {x.content.model_fingerprint[:12]}")
                for x in (first, result)
            )
            raise UserError(
                f"results of kvtq-hw eval: {one!r} is of model {of_one}; {other!r} of {of_other}; "
                "allowed are files of one model"
            )
    return results


def quality_of(code: str, results: Sequence[QualityResult]) -> dict[str, Any] | None:
    """Return the measured quality of a code; None if no file has the code.

    Parameters
    ----------
    code : a spelled code, or `str` of a code table, which is found by the name of its file

    Returns
    -------
    dict with perplexity_ratio and kld (against the unquantized model), bits_per_element, file and
    tag
    """
    for result in results:
        for row in result.content.rows:
            if _is_of(row.code, code):
                return {
                    "tag": "measured",
                    "file": result.file,
                    "perplexity_ratio": row.perplexity_ratio,
                    "kld": row.kld,
                    "bits_per_element": row.bits_per_element,
                }
    return None


def _is_of(spelled: str, code: str) -> bool:
    """Return whether a row's code, `spelled`, is `code`; rows spell a code table as a path."""
    if spelled.endswith(".toml"):
        return Path(spelled).name == code.partition("@")[0]
    return spelled == code
