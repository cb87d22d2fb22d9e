"""What is measured on one segment of a text, by whom ever: this process, or a worker of a cluster.

Predictions of the unquantized model, 200 MB for 1024 tokens of a vocabulary of 49152, are shared by
all formats measured on a segment, and never leave the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from golden.llm.models import LanguageModel
    from golden.study.formats import CacheFormat
    from golden.study.quality import Reference

__all__ = ["UNQUANTIZED", "Formats", "Needles", "Reporter", "Task", "key_of", "measure"]

#: Spelling of the model's own cache.
UNQUANTIZED = "unquantized"

Formats = Mapping[str, "CacheFormat | None"]
"""Formats by spelled code, `UNQUANTIZED` among them; None is the model's own cache."""


@dataclass(frozen=True)
class Needles:
    """Result of a haystack: whether each hidden number was found."""

    retrieved: list[bool]


@dataclass(frozen=True)
class Task:
    """Results wanted of one segment.

    what : scores of the predictions, or needles
    index : index of the segment, which is also the seed of its needles
    tokens : the segment, int64 [context]
    keys : key of each wanted result in the store, by spelled code
    """

    what: Literal["segment", "needles"]
    index: int
    tokens: Tensor
    keys: dict[str, dict[str, Any]]


class Reporter(Protocol):
    """Takes the progress and the results of a task."""

    def label(self, text: str) -> None:
        """Set the name of the current measurement."""
        ...

    def step(self, tokens: int) -> None:
        """Advance by a number of tokens that were fed to the model."""
        ...

    def put(self, task: Task, code: str, result: dict[str, Any]) -> None:
        """Take the result of a spelled code: the fields of `SegmentScore`, or of `Needles`."""
        ...


def key_of(
    model: LanguageModel,
    what: Literal["segment", "needles"],
    index: int,
    tokens: Tensor,
    cache_format: CacheFormat | None,
) -> dict[str, Any]:
    """Return everything that decides a result; see `Task` for the parameters.

    The model's fingerprint counts the dtype of its weights.
    """
    import torch
    import transformers

    from golden.study.quality import DEFAULT_CHUNK
    from kvtq_hw.host.sources import source_digest

    modules = cache_format.modules if cache_format else ()
    key = {
        "measured": what,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": model.fingerprint,
        "tokens": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
        "chunk": DEFAULT_CHUNK,
        "code": cache_format.name if cache_format else UNQUANTIZED,
        "arithmetic": cache_format.arithmetic if cache_format else "float",
        "identity": cache_format.identity() if cache_format else "",
        "sources": source_digest("golden.study.quality", *modules),
    }
    device = model.model.device.type
    if device != "cpu":  # sums in another order; results of CPUs have no such field
        key["device"] = device
    if what == "needles":
        key |= {"seed": index, "needles": source_digest("golden.study.needle")}
    return key


def measure(
    model: LanguageModel,
    formats: Formats,
    task: Task,
    reporter: Reporter,
    reference: Callable[[], Reference] | None = None,
) -> None:
    """Measure the results of a task, one after the other.

    Parameters
    ----------
    reference : makes the unquantized model's predictions on the segment, and counts them as
        progress; they are computed when None
    """
    if task.what == "needles":
        _measure_needles(model, formats, task, reporter)
        return
    from golden.study.quality import evaluate_reference, evaluate_segment

    reporter.label(f"segment {task.index + 1}: {UNQUANTIZED}")
    if reference is None:
        expected = evaluate_reference(model, task.tokens, on_tokens=reporter.step)
    else:
        expected = reference()
    if UNQUANTIZED in task.keys:
        reporter.put(task, UNQUANTIZED, asdict(expected.score))
    for code in task.keys:
        cache_format = formats[code]
        if cache_format is not None:
            reporter.label(f"segment {task.index + 1}: {code}")
            score = evaluate_segment(model, expected, cache_format, on_tokens=reporter.step)
            reporter.put(task, code, asdict(score))


def _measure_needles(
    model: LanguageModel, formats: Formats, task: Task, reporter: Reporter
) -> None:
    """Hide numbers in a segment and let each format retrieve them."""
    from golden.study.needle import make_haystack, retrieve

    haystack = make_haystack(model, task.tokens, task.index)
    for code in task.keys:
        reporter.label(f"segment {task.index + 1}: needles, {code}")
        found = retrieve(model, haystack, formats[code], on_tokens=reporter.step)
        reporter.put(task, code, asdict(Needles(found)))
