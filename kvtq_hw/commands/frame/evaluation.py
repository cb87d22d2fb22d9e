"""Evaluation of cache formats on segments of a text; each result is stored at once.

An interrupted evaluation continues where it stopped, and nothing is measured twice. Predictions of
the unquantized model are kept in a file while their segment is measured. They are computed again if
a format is added later, and on the workers of a cluster, which keep no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from kvtq_hw.commands.frame.measuring import (
    UNQUANTIZED,
    Formats,
    Needles,
    Reporter,
    Task,
    key_of,
    measure,
)
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import json_text
from kvtq_hw.host.results import ResultStore

if TYPE_CHECKING:
    from torch import Tensor

    from golden.llm.models import LanguageModel
    from golden.study.formats import CacheFormat
    from golden.study.quality import Reference, SegmentScore

__all__ = ["Bar", "EvalRow", "Evaluation", "Spread"]

Kind = TypeVar("Kind")

#: Most bytes of predictions that are kept in a file. A file of 1.07 GB (1024 tokens, a vocabulary
#: of 262,144) took 20 s and 1.5 GB of memory to write: a small model predicts as fast.
_MOST_BYTES = 1 << 29


class Spread(Protocol):
    """Has tasks measured elsewhere."""

    def measure(self, formats: Formats, tasks: Sequence[Task], reporter: Reporter) -> None:
        """Measure all tasks; give each result to the reporter as soon as it comes."""
        ...


class Bar(Protocol):
    """Shows the progress of an evaluation."""

    def begin(self, tokens: int) -> None:
        """Set the total number of tokens to be fed to the model."""
        ...

    def label(self, text: str) -> None:
        """Set the name of the current measurement."""
        ...

    def step(self, tokens: int) -> None:
        """Advance by a number of tokens."""
        ...


@dataclass(frozen=True)
class EvalRow:
    """The row of one code; field names are the column names of every output.

    Attributes
    ----------
    code : the spelled code
    attention : ``integer`` (docs/contract.md) or ``float``
    bits_per_element : stored bits per cached number at the full context, everything included
    perplexity : over all predicted positions
    perplexity_ratio : perplexity divided by the unquantized model's
    kld : mean Kullback-Leibler divergence from the unquantized model, nats per position
    top1_agreement : share of positions with the unquantized model's most likely token
    tokens : number of predicted positions
    saturated, saturated_share : number and share of elements of keys and values, over all segments,
        that did not fit the 16 bits of the calibration
    needle : share of hidden numbers retrieved; None if retrieval was not requested
    needles : number of hidden numbers
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


@dataclass(frozen=True)
class Evaluation:
    """Measures cache formats for a model on segments of a text.

    Attributes
    ----------
    model : the language model
    segments : token ids of each segment, int64 [context]
    haystacks : number of segments, from the first on, with hidden numbers to be retrieved
    folder : folder of the stored results
    bar : shows the progress
    spread : has tasks measured elsewhere; None to measure them here
    """

    model: LanguageModel
    segments: Sequence[Tensor]
    haystacks: int
    folder: Path
    bar: Bar
    spread: Spread | None = None

    def measure(self, formats: Formats) -> list[EvalRow]:
        """Return the row of each spelled format, and measure what is not stored."""
        every = {UNQUANTIZED: None, **formats}
        length = len(self.segments[0])
        self.bar.begin(len(every) * (len(self.segments) + self.haystacks) * length)
        tasks = self._tasks(every)
        if self.spread is None:
            for task in tasks:
                measure(self.model, every, task, self, partial(self._reference, task.tokens))
                with suppress(OSError):
                    self._reference_file(task.tokens).unlink(missing_ok=True)
        else:
            self.spread.measure(every, list(tasks), self)
        references = self._scores(None)
        return [self._row(code, formats[code], references) for code in formats]

    def label(self, text: str) -> None:
        """Show the name of the current measurement."""
        self.bar.label(text)

    def step(self, tokens: int) -> None:
        """Show that tokens were fed to the model."""
        self.bar.step(tokens)

    def put(self, task: Task, code: str, result: dict[str, Any]) -> None:
        """Store a result."""
        self._store.put(task.keys[code], result)

    def _tasks(self, formats: Formats) -> Iterator[Task]:
        """Yield what is not stored, segment by segment; count what is stored as progress."""
        for index, tokens in enumerate(self.segments):
            kinds: list[tuple[Literal["segment", "needles"], type]] = [
                ("segment", self._score_type)
            ]
            if index < self.haystacks:
                kinds.append(("needles", Needles))
            for what, kind in kinds:
                keys = {
                    code: key_of(self.model, what, index, tokens, cache_format)
                    for code, cache_format in formats.items()
                }
                missing = {
                    code: key for code, key in keys.items() if self._store.get(key, kind) is None
                }
                self.bar.step(len(tokens) * (len(keys) - len(missing)))
                if missing:
                    yield Task(what, index, tokens, missing)

    def _row(
        self, code: str, cache_format: CacheFormat | None, references: list[SegmentScore]
    ) -> EvalRow:
        from golden.study.quality import summarize

        found = [
            retrieved
            for index in range(self.haystacks)
            for retrieved in self._stored(
                key_of(self.model, "needles", index, self.segments[index], cache_format), Needles
            ).retrieved
        ]
        return EvalRow(
            code=code,
            attention=cache_format.arithmetic if cache_format else "float",
            **asdict(summarize(self._scores(cache_format), references)),
            needle=sum(found) / len(found) if found else None,
            needles=len(found),
        )

    def _scores(self, cache_format: CacheFormat | None) -> list[SegmentScore]:
        """Return the stored scores of a format, one per segment."""
        keys = (self._score_key(tokens, cache_format) for tokens in self.segments)
        return [self._stored(key, self._score_type) for key in keys]

    def _reference(self, tokens: Tensor) -> Reference:
        """Return the unquantized model's predictions; reuse the file of an interrupted run."""
        from golden.study.quality import evaluate_reference, load_reference, save_reference

        file = self._reference_file(tokens)
        score = self._store.get(self._score_key(tokens, None), self._score_type)
        if score is None:
            reference = evaluate_reference(self.model, tokens, on_tokens=self.bar.step)
        else:
            kept = load_reference(file, tokens, score)
            if kept is not None:
                placed = self.model.placed(kept.log_probabilities)
                return replace(kept, log_probabilities=placed)
            reference = evaluate_reference(self.model, tokens)
        if reference.log_probabilities.nbytes <= _MOST_BYTES:
            with suppress(UserError):  # no room for the file: an interruption then only costs time
                save_reference(file, reference)
        return reference

    def _score_key(self, tokens: Tensor, cache_format: CacheFormat | None) -> dict[str, Any]:
        return key_of(self.model, "segment", 0, tokens, cache_format)

    def _reference_file(self, tokens: Tensor) -> Path:
        """Return the file of the unquantized model's predictions on a segment."""
        key = json_text(self._score_key(tokens, None))
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.folder / "open" / f"{name}.safetensors"

    @property
    def _score_type(self) -> type[SegmentScore]:
        from golden.study.quality import SegmentScore

        return SegmentScore

    @cached_property
    def _store(self) -> ResultStore:
        return ResultStore(self.folder / "quality.sqlite")

    def _stored(self, key: dict[str, Any], kind: type[Kind]) -> Kind:
        result = self._store.get(key, kind)
        if result is None:
            raise UserError("store of results: a result just measured is gone; run again")
        return result
