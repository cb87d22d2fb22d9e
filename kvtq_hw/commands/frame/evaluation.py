"""Evaluation of cache formats on segments of a text; each result is stored at once.

An interrupted evaluation continues where it stopped, and nothing is measured twice. Predictions of
the unquantized model, 200 MB for 1024 tokens, are kept only while their segment is measured. They
are computed again if a format is added later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import json_text
from kvtq_hw.host.results import ResultStore
from kvtq_hw.host.sources import source_digest

if TYPE_CHECKING:
    from torch import Tensor

    from golden.llm.models import LanguageModel
    from golden.study.formats import CacheFormat
    from golden.study.quality import Reference, SegmentScore

__all__ = ["UNQUANTIZED", "Bar", "EvalRow", "Evaluation"]

#: Spelling of the model's own cache.
UNQUANTIZED = "unquantized"

Kind = TypeVar("Kind")


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
class _Needles:
    """Stored result of a haystack: whether each hidden number was found."""

    retrieved: list[bool]


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
    """

    model: LanguageModel
    segments: Sequence[Tensor]
    haystacks: int
    folder: Path
    bar: Bar

    def measure(self, formats: Mapping[str, CacheFormat | None]) -> list[EvalRow]:
        """Return the row of each spelled format, and measure what is not stored.

        The format None is the model's own cache.
        """
        every = {UNQUANTIZED: None, **formats}
        length = len(self.segments[0])
        self.bar.begin(len(every) * (len(self.segments) + self.haystacks) * length)
        for index in range(len(self.segments)):
            self._measure_segment(index, every)
            if index < self.haystacks:
                self._measure_needles(index, every)
        references = self._scores(None)
        return [self._row(code, formats[code], references) for code in formats]

    def _row(
        self, code: str, cache_format: CacheFormat | None, references: list[SegmentScore]
    ) -> EvalRow:
        from golden.study.quality import summarize

        found = [
            retrieved
            for index in range(self.haystacks)
            for retrieved in self._stored(self._needle_key(index, cache_format), _Needles).retrieved
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
        from golden.study.quality import SegmentScore

        keys = (self._score_key(tokens, cache_format) for tokens in self.segments)
        return [self._stored(key, SegmentScore) for key in keys]

    def _measure_segment(self, index: int, formats: Mapping[str, CacheFormat | None]) -> None:
        """Feed a segment to each format that has no stored score for the segment."""
        from golden.study.quality import SegmentScore, evaluate_segment

        tokens = self.segments[index]
        keys = {code: self._score_key(tokens, kind) for code, kind in formats.items()}
        missing = [code for code, key in keys.items() if self._store.get(key, SegmentScore) is None]
        if not missing:
            self.bar.step(len(tokens) * len(formats))
            return
        self.bar.step(len(tokens) * (len(formats) - len({UNQUANTIZED, *missing})))
        self.bar.label(f"segment {index + 1}: {UNQUANTIZED}")
        file = self.folder / "open" / f"{self._digest(tokens)}.safetensors"
        reference = self._reference(tokens, file)
        for code in missing:
            cache_format = formats[code]
            if cache_format is not None:
                self.bar.label(f"segment {index + 1}: {code}")
                score = evaluate_segment(
                    self.model, reference, cache_format, on_tokens=self.bar.step
                )
                self._store.put(keys[code], asdict(score))
        with suppress(OSError):
            file.unlink(missing_ok=True)

    def _reference(self, tokens: Tensor, file: Path) -> Reference:
        """Return the unquantized model's predictions; reuse the file of an interrupted run."""
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
            self.bar.step(len(tokens))
            return kept
        reference = evaluate_reference(self.model, tokens, on_tokens=self.bar.step)
        self._store.put(key, asdict(reference.score))
        with suppress(UserError):  # no room for the file: an interruption then only costs time
            save_reference(file, reference)
        return reference

    def _measure_needles(self, index: int, formats: Mapping[str, CacheFormat | None]) -> None:
        """Hide numbers in a segment and let each format retrieve them; `index` is also the seed."""
        from golden.study.needle import make_haystack, retrieve

        haystack = make_haystack(self.model, self.segments[index], index)
        for code, cache_format in formats.items():
            key = self._needle_key(index, cache_format)
            if self._store.get(key, _Needles) is None:
                self.bar.label(f"segment {index + 1}: needles, {code}")
                found = retrieve(self.model, haystack, cache_format, on_tokens=self.bar.step)
                self._store.put(key, {"retrieved": found})
            else:
                self.bar.step(len(self.segments[index]))

    def _score_key(self, tokens: Tensor, cache_format: CacheFormat | None) -> dict[str, Any]:
        """Return everything that decides a segment's score."""
        import torch
        import transformers

        from golden.study.quality import DEFAULT_CHUNK

        modules = cache_format.modules if cache_format else ()
        return {
            "measured": "segment",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "model": self.model.fingerprint,
            "tokens": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
            "chunk": DEFAULT_CHUNK,
            "code": cache_format.name if cache_format else UNQUANTIZED,
            "arithmetic": cache_format.arithmetic if cache_format else "float",
            "identity": cache_format.identity() if cache_format else "",
            "sources": source_digest("golden.study.quality", *modules),
        }

    def _needle_key(self, index: int, cache_format: CacheFormat | None) -> dict[str, Any]:
        """Return everything that decides which numbers are retrieved from a segment."""
        return {
            **self._score_key(self.segments[index], cache_format),
            "measured": "needles",
            "seed": index,
            "needles": source_digest("golden.study.needle"),
        }

    def _digest(self, tokens: Tensor) -> str:
        """Return a digest that names the unquantized model's predictions on a segment."""
        key = json_text(self._score_key(tokens, None))
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    @cached_property
    def _store(self) -> ResultStore:
        return ResultStore(self.folder / "quality.sqlite")

    def _stored(self, key: dict[str, Any], kind: type[Kind]) -> Kind:
        result = self._store.get(key, kind)
        if result is None:
            raise UserError("store of results: a result just measured is gone; run again")
        return result
