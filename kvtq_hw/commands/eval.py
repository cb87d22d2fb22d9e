"""Measure what cache formats leave of a language model, and at how many true bits.

Every code runs through the cache, teacher-forced, on the same segments of a text. The results are
perplexity, divergence from the unquantized model, agreement with the unquantized model's most
likely tokens, and on demand the retrieval of numbers hidden in the context.
`kvtq_hw.commands.frame.evaluation` stores the results: an interrupted run continues where it
stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from kvtq_hw.commands.frame.cluster import connected
from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    OutputFile,
    calibration_option,
    code_option,
    device_options,
    fitted_option,
    json_option,
    model_option,
    scheduler_option,
    write_json,
)
from kvtq_hw.contract.codes import STANDARD_CODES, CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import read_text, write_text
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.host.steps import ShowStep, show_steps

if TYPE_CHECKING:
    from golden.llm.models import LanguageModel
    from golden.study.formats import CacheFormat
    from kvtq_hw.commands.frame.evaluation import EvalRow
    from kvtq_hw.commands.frame.spread import ClusterSpread, ModelPlace

__all__ = ["command"]

CODES: tuple[CacheCode | str, ...] = ("unquantized", *STANDARD_CODES[:2], "int4", "kivi:2")


@click.command()
@model_option
@device_options
@code_option(
    "A ternary code or a baseline; give it several times for several rows.",
    CODES,
    accepts="format",
)
@calibration_option
@click.option(
    "--text",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Text to evaluate on.  [default: Python's documentation topics]",
)
@click.option(
    "--context",
    type=click.IntRange(2, MAX_TOKENS),
    default=1024,
    show_default=True,
    help="Tokens of a segment.",
)
@click.option(
    "--segments",
    type=click.IntRange(1, MAX_TOKENS),
    default=8,
    show_default=True,
    help="Consecutive segments from the beginning of the text.",
)
@click.option(
    "--attention",
    type=click.Choice(["integer", "float"]),
    default="float",
    show_default=True,
    help="Attention of ternary codes: the integer contract, or float over the same planes.",
)
@click.option(
    "--needle",
    "haystacks",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Measure retrieval too, in the first N segments, eight hidden numbers in each.",
)
@scheduler_option("this process")
@fitted_option
@click.option("--csv", "csv_file", type=OutputFile(), default=None, help="Write the rows as CSV.")
@json_option
@click.option(
    "--markdown",
    "markdown_file",
    type=OutputFile(),
    default=None,
    help="Write the rows as a table.",
)
def command(
    model_name: str,
    device: str,
    dtype: str,
    codes: Sequence[str],
    calibration_file: Path | None,
    text_file: Path | None,
    context: int,
    segments: int,
    attention: str,
    haystacks: int,
    scheduler: str | None,
    preset: EngineConfig | None,
    csv_file: Path | None,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure perplexity, divergence and retrieval of cache formats at their true bits."""
    from golden.study.catalog import is_ternary, ternary_code
    from golden.study.quality import DEFAULT_CHUNK, cut_segments, documentation_text
    from kvtq_hw.commands.frame.evaluation import Evaluation
    from kvtq_hw.commands.frame.spread import ModelPlace

    if haystacks > segments:
        raise UserError(
            f"--needle: {haystacks} is not allowed; must be at most --segments, {segments}"
        )
    console = Console()
    step = show_steps(console)
    codes = list(dict.fromkeys(codes))
    ternary = [ternary_code(code) for code in codes if is_ternary(code)]
    text = documentation_text() if text_file is None else read_text(text_file, "text")
    place = ModelPlace(model_name, bool(ternary), device, dtype)
    with _spread(scheduler, place) as spread:
        with step(f"Loading model {model_name}"):
            model = place.load()
        if ternary:
            config = model.fitted(preset, ternary, context)
        else:
            config = preset or model.engine_config(context)
        pieces = cut_segments(model, text, context, segments)
        formats = _formats(codes, model, config, attention, calibration_file, step)
        with _EvaluationBar(console) as bar:
            evaluation = Evaluation(model, pieces, haystacks, cache_folder(), bar, spread)
            rows = evaluation.measure(formats)
    console.print(_table(rows))
    _print_saturated(rows)
    summary = {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "device": model.model.device.type,
        "dtype": dtype,
        "text": "pydoc_data.topics" if text_file is None else text_file.name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "context": len(pieces[0]),
        "segments": len(pieces),
        "chunk": DEFAULT_CHUNK,
        "config": config.model_dump(),
        "rows": [asdict(row) for row in rows],
    }
    if csv_file is not None:
        write_text(csv_file, _as_csv(rows), "--csv")
    write_json(json_file, summary)
    if markdown_file is not None:
        write_text(markdown_file, _as_markdown(rows), "--markdown")


@contextmanager
def _spread(scheduler: str | None, place: ModelPlace) -> Iterator[ClusterSpread | None]:
    """Yield what spreads an evaluation over the workers of a Dask cluster; None without one."""
    if scheduler is None:
        yield None
        return
    from kvtq_hw.commands.frame.spread import ClusterSpread

    with connected(scheduler) as client:
        yield ClusterSpread(client, place)


def _print_saturated(rows: list[EvalRow]) -> None:
    from golden.cache.saturation import saturated_words

    for row in rows:
        if row.saturated:
            click.echo(f"{row.code}: {saturated_words(row.saturated, row.saturated_share)}")


def _formats(
    codes: Sequence[str],
    model: LanguageModel,
    config: EngineConfig,
    attention: str,
    calibration_file: Path | None,
    step: ShowStep,
) -> dict[str, CacheFormat | None]:
    """Return the format of each spelled code, None for the model's own cache.

    Warns of keys that a code rounds badly, and of layers that lose far more than others.

    Parameters
    ----------
    attention : attention of ternary codes, "integer" or "float"
    calibration_file : file of `kvtq-hw calibrate`; None to calibrate once and keep the result
    step : shows the calibration
    """
    from golden.attend.backends import GoldenBackend
    from golden.attend.single_precision import SinglePrecisionBackend
    from golden.llm.calibration import Calibration, load_or_calibrate
    from golden.study.catalog import TernaryFormat, parse_format
    from golden.study.coding_warnings import warn_of_losses
    from golden.study.formats import FormatInputs
    from kvtq_hw.commands.frame.measuring import UNQUANTIZED

    @cache
    def calibration() -> Calibration:
        with step("Calibrating") as on_progress:
            return load_or_calibrate(model, calibration_file, on_progress)

    backend = GoldenBackend() if attention == "integer" else SinglePrecisionBackend()
    inputs = FormatInputs(model, config, calibration)
    formats = {
        code: None if code == UNQUANTIZED else parse_format(code, inputs, backend) for code in codes
    }
    for entry in formats.values():
        if isinstance(entry, TernaryFormat) and entry.conditioning[0].rotate:
            warn_of_losses(model, entry.conditioning, entry.config, entry.code)
    return formats


class _EvaluationBar(Progress):
    """A progress bar over the tokens of an evaluation."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
        super().__init__(*columns, TimeRemainingColumn(), console=console)
        self._task = self.add_task("")

    def begin(self, tokens: int) -> None:
        """Set the total number of tokens to be fed to the model."""
        self.update(self._task, total=tokens)

    def label(self, text: str) -> None:
        """Set the name of the current measurement."""
        self.update(self._task, description=text)

    def step(self, tokens: int) -> None:
        """Advance by a number of tokens."""
        self.advance(self._task, tokens)


def _as_csv(rows: list[EvalRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _cells(row: EvalRow) -> list[str]:
    """Return the columns for readers, rounded."""
    cells = [
        row.code,
        row.attention,
        f"{row.bits_per_element:.3f}",
        f"{row.perplexity:.3f}",
        f"{100 * (row.perplexity_ratio - 1):+.2f} %",
        f"{row.kld:.4f}",
        f"{100 * row.top1_agreement:.1f} %",
    ]
    return cells if row.needle is None else [*cells, f"{100 * row.needle:.0f} %"]


def _titles(rows: list[EvalRow]) -> list[str]:
    titles = ["code", "attention", "bits", "perplexity", "change", "KLD", "same top-1"]
    return titles if rows[0].needle is None else [*titles, "needles"]


def _as_markdown(rows: list[EvalRow]) -> str:
    """Return the rows as a Markdown table."""
    titles = _titles(rows)
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)], *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(rows: list[EvalRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, title in enumerate(_titles(rows)):
        # in a narrow terminal the code's column is folded, but no number
        table.add_column(
            title, justify="left" if index < 2 else "right", no_wrap=index > 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*_cells(row))
    return table
