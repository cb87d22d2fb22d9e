"""Measure what cache formats leave of a language model, and at how many true bits.

Every code is run through the cache, teacher-forced, on the same segments of a text: perplexity,
divergence from the unquantized model, agreement with its most likely tokens, and on demand the
retrieval of numbers hidden in the context. Results are kept as they come: an interrupted run goes
on where it stopped, and nothing is measured twice. The unquantized model's predictions, 200 MB for
1024 tokens, are kept while a segment is open, and computed again where a code joins later.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    STANDARD_CODES,
    OutputFile,
    code_option,
    fitted_option,
    json_option,
    model_option,
    write_json,
)
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import json_text, read_text, write_text
from kvtq_hw.contract.folders import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

    from golden.study.formats import CacheFormat
    from golden.study.quality import OnTokens, Reference

__all__ = ["EvalRow", "command"]

UNQUANTIZED = "unquantized"
CODES: tuple[CacheCode | str, ...] = (UNQUANTIZED, *STANDARD_CODES[:2], "int4", "kivi:2")


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class _Needles:
    """What is stored of a haystack: whether each hidden number was found."""

    retrieved: list[bool]


@dataclass(frozen=True)
class EvalRow:
    """One code's row; the names are the columns of every output.

    Attributes
    ----------
    code : the spelled code
    attention : ``integer`` (docs/contract.md) or ``float``
    bits_per_element : stored bits per cached number at the full context, everything included
    perplexity : over all predicted positions
    perplexity_ratio : to the unquantized model
    kld : mean Kullback-Leibler divergence from the unquantized model, nats a position
    top1_agreement : share of positions with the unquantized model's most likely token
    tokens : predicted positions
    saturated, saturated_share : elements of keys and values that did not fit the 16 bits of the
        calibration, over all segments, and their share
    needle : share of hidden numbers retrieved; None when not asked for
    needles : hidden numbers
    """

    code: str
    attention: str
    bits_per_element: float
    perplexity: float
    perplexity_ratio: float
    kld: float
    top1_agreement: float
    tokens: int
    saturated: int
    saturated_share: float
    needle: float | None
    needles: int


@click.command()
@model_option
@code_option(
    "A ternary code or a baseline; give it several times for several rows.",
    CODES,
    accepts="format",
)
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
    codes: Sequence[str],
    text_file: Path | None,
    context: int,
    segments: int,
    attention: str,
    haystacks: int,
    preset: EngineConfig | None,
    csv_file: Path | None,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure perplexity, divergence and retrieval of cache formats at their true bits."""
    if haystacks > segments:
        raise UserError(
            f"--needle: {haystacks} is not allowed; must be at most --segments, {segments}"
        )
    console = Console()
    codes = list(dict.fromkeys(codes))
    run = _Run(
        console, model_name, text_file, codes, context, segments, attention, haystacks, preset
    )
    rows = run.measure(codes)
    console.print(_table(rows))
    _print_saturated(rows)
    summary = {**run.description(), "rows": [asdict(row) for row in rows]}
    if csv_file is not None:
        write_text(csv_file, _as_csv(rows), "--csv")
    write_json(json_file, summary)
    if markdown_file is not None:
        write_text(markdown_file, _as_markdown(rows), "--markdown")


def _print_saturated(rows: list[EvalRow]) -> None:
    from golden.cache.saturation import saturated_words

    for row in rows:
        if row.saturated:
            click.echo(f"{row.code}: {saturated_words(row.saturated, row.saturated_share)}")


class _Run:
    """One evaluation: the model, its text, and what has been measured."""

    def __init__(
        self,
        console: Console,
        model_name: str,
        text_file: Path | None,
        codes: Sequence[str],
        context: int,
        segments: int,
        attention: str,
        haystacks: int,
        preset: EngineConfig | None,
    ) -> None:

        from golden.llm.models import load_model
        from golden.study.catalog import is_ternary, ternary_code
        from golden.study.quality import cut_segments, documentation_text
        from kvtq_hw.host.results import ResultStore

        self._console = console
        self._attention = attention
        self._haystacks = haystacks
        ternary = [ternary_code(code) for code in codes if is_ternary(code)]
        text = documentation_text() if text_file is None else read_text(text_file, "text")
        with console.status(f"Loading model {model_name}"):
            self._model = load_model(model_name, ternary=bool(ternary))
        if ternary:
            self._config = self._model.fitted(preset, ternary, context)
        else:
            self._config = preset or self._model.engine_config(context)
        self._text_digest = hashlib.sha256(text.encode()).hexdigest()
        self._text_name = "pydoc_data.topics" if text_file is None else text_file.name
        self._segments = cut_segments(self._model, text, context, segments)
        self._folder = cache_folder()
        self._store = ResultStore(self._folder / "quality.sqlite")

    def description(self) -> dict[str, Any]:
        """What was measured on what, as ``--json`` has it."""
        from golden.study.quality import DEFAULT_CHUNK

        return {
            "model": self._model.name,
            "model_fingerprint": self._model.fingerprint,
            "text": self._text_name,
            "text_sha256": self._text_digest,
            "context": len(self._segments[0]),
            "segments": len(self._segments),
            "chunk": DEFAULT_CHUNK,
            "config": self._config.model_dump(),
        }

    def measure(self, codes: list[str]) -> list[EvalRow]:
        """The rows of all codes; measures what is not yet in the store."""
        from golden.study.catalog import TernaryFormat
        from golden.study.key_error import warn_of_keys
        from golden.study.quality import SegmentScore, summarize

        formats = {code: self._parse(code) for code in codes}
        for kind in formats.values():
            if isinstance(kind, TernaryFormat) and kind.conditioning[0].rotate:
                warn_of_keys(self._model, kind.conditioning, kind.config, kind.code)
        kinds = {UNQUANTIZED: None, **formats}
        with self._progress() as progress:
            length = len(self._segments[0])
            total = len(kinds) * (len(self._segments) + self._haystacks) * length
            task = progress.add_task("", total=total)
            for index, tokens in enumerate(self._segments):

                def label(what: str, index: int = index) -> None:
                    progress.update(task, description=f"segment {index + 1}: {what}")

                def advance(tokens: int) -> None:
                    progress.advance(task, tokens)

                self._measure_segment(tokens, kinds, label, advance)
                if index < self._haystacks:
                    self._measure_needles(tokens, index, kinds, label, advance)
        scores = {
            code: [
                self._stored(self._score_key(tokens, kinds[code]), SegmentScore)
                for tokens in self._segments
            ]
            for code in kinds
        }
        rows = []
        for code in codes:
            quality = summarize(scores[code], scores[UNQUANTIZED])
            found = [
                retrieved
                for index, tokens in enumerate(self._segments[: self._haystacks])
                for retrieved in self._stored(
                    self._needle_key(tokens, index, kinds[code]), _Needles
                ).retrieved
            ]
            cache_format = formats[code]
            rows.append(
                EvalRow(
                    code=code,
                    attention=cache_format.arithmetic if cache_format else "float",
                    **asdict(quality),
                    needle=sum(found) / len(found) if found else None,
                    needles=len(found),
                )
            )
        return rows

    def _parse(self, code: str) -> CacheFormat | None:
        """The format of a code; None for the model's own cache."""
        from golden.attend.backends import GoldenBackend
        from golden.attend.single_precision import SinglePrecisionBackend
        from golden.llm.calibration import load_or_calibrate
        from golden.study.catalog import parse_format
        from golden.study.formats import FormatInputs

        if code == UNQUANTIZED:
            return None
        backend = GoldenBackend() if self._attention == "integer" else SinglePrecisionBackend()
        inputs = FormatInputs(self._model, self._config, lambda: load_or_calibrate(self._model))
        return parse_format(code, inputs, backend)

    def _measure_segment(
        self,
        tokens: Tensor,
        kinds: dict[str, CacheFormat | None],
        label: Callable[[str], None],
        advance: OnTokens,
    ) -> None:
        from golden.study.quality import SegmentScore, evaluate_segment

        missing = [
            code
            for code, kind in kinds.items()
            if self._store.get(self._score_key(tokens, kind), SegmentScore) is None
        ]
        advance(len(tokens) * (len(kinds) - len({UNQUANTIZED, *missing} if missing else missing)))
        if not missing:
            return
        label(UNQUANTIZED)
        file = self._folder / "open" / f"{self._digest(tokens)}.safetensors"
        reference = self._reference(tokens, file, advance)
        for code in missing:
            kind = kinds[code]
            if kind is not None:
                label(code)
                score = evaluate_segment(self._model, reference, kind, on_tokens=advance)
                self._store.put(self._score_key(tokens, kind), asdict(score))
        with suppress(OSError):
            file.unlink(missing_ok=True)

    def _reference(self, tokens: Tensor, file: Path, advance: OnTokens) -> Reference:
        """The unquantized model's predictions; of an interrupted run if its file is there."""
        from golden.study.quality import (
            SegmentScore,
            evaluate_reference,
            load_reference,
            save_reference,
        )

        key = self._score_key(tokens, None)
        score = self._store.get(key, SegmentScore)
        kept = None if score is None else load_reference(file, tokens, score)
        if kept is not None:
            advance(len(tokens))
            return kept
        reference = evaluate_reference(self._model, tokens, on_tokens=advance)
        self._store.put(key, asdict(reference.score))
        with suppress(UserError):  # no room for it: an interruption costs time, nothing else
            save_reference(file, reference)
        return reference

    def _measure_needles(
        self,
        tokens: Tensor,
        seed: int,
        kinds: dict[str, CacheFormat | None],
        label: Callable[[str], None],
        advance: OnTokens,
    ) -> None:
        from golden.study.needle import make_haystack, retrieve

        haystack = make_haystack(self._model, tokens, seed)
        for code, kind in kinds.items():
            key = self._needle_key(tokens, seed, kind)
            if self._store.get(key, _Needles) is None:
                label(f"needles, {code}")
                found = retrieve(self._model, haystack, kind, on_tokens=advance)
                self._store.put(key, {"retrieved": found})
            else:
                advance(len(tokens))

    def _score_key(self, tokens: Tensor, kind: CacheFormat | None) -> dict[str, Any]:
        """Everything that decides a segment's score."""
        import torch
        import transformers

        from golden.study.quality import DEFAULT_CHUNK
        from kvtq_hw.host.sources import source_digest

        return {
            "measured": "segment",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "model": self._model.fingerprint,
            "tokens": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
            "chunk": DEFAULT_CHUNK,
            "code": kind.name if kind else UNQUANTIZED,
            "arithmetic": kind.arithmetic if kind else "float",
            "identity": kind.identity() if kind else "",
            "sources": source_digest("golden.study.quality", *(kind.modules if kind else ())),
        }

    def _needle_key(self, tokens: Tensor, seed: int, kind: CacheFormat | None) -> dict[str, Any]:
        from kvtq_hw.host.sources import source_digest

        sources = source_digest("golden.study.needle")
        return {
            **self._score_key(tokens, kind),
            "measured": "needles",
            "seed": seed,
            "needles": sources,
        }

    def _digest(self, tokens: Tensor) -> str:
        """Name of what the unquantized model gives on a segment."""
        key = json_text(self._score_key(tokens, None))
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def _stored(self, key: dict[str, Any], kind: type[Kind]) -> Kind:
        result = self._store.get(key, kind)
        if result is None:
            raise UserError("store of results: a result just measured is gone; run again")
        return result

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )


def _as_csv(rows: list[EvalRow]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EvalRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _cells(row: EvalRow) -> list[str]:
    """The columns that a reader compares, rounded."""
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
    """The rows as a table in Markdown."""
    titles = _titles(rows)
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)], *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(rows: list[EvalRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, title in enumerate(_titles(rows)):
        # in a narrow terminal the code is folded, never a number
        table.add_column(
            title, justify="left" if index < 2 else "right", no_wrap=index > 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*_cells(row))
    return table
