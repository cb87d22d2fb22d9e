"""Cache formats side by side on the segments of a text; nothing is stored on disk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from golden.llm.models import LanguageModel
from golden.study.formats import CacheFormat
from golden.study.quality import (
    OnTokens,
    Quality,
    SegmentScore,
    evaluate_reference,
    evaluate_segment,
    summarize,
)
from kvtq_hw.contract.errors import UserError

__all__ = ["UNQUANTIZED", "evaluate_formats"]

#: Name of the row of the model's own cache.
UNQUANTIZED = "unquantized"


def evaluate_formats(
    language_model: LanguageModel,
    segments: Sequence[Tensor],
    formats: Sequence[CacheFormat],
    on_tokens: OnTokens | None = None,
) -> dict[str, Quality]:
    """Measure the quality of formats, by name; the first one is the unquantized model.

    Parameters
    ----------
    segments : tokens int64 [context] each
    on_tokens : called with the number of tokens fed, of ``(1 + formats) * segments * context``

    Raises
    ------
    UserError
        When two formats have one name.
    """
    names = [UNQUANTIZED, *(entry.name for entry in formats)]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"formats: {sorted(repeated)[0]!r} is there twice; names must differ")
    scores: dict[str, list[SegmentScore]] = {name: [] for name in names}
    for tokens in segments:
        reference = evaluate_reference(language_model, tokens, on_tokens=on_tokens)
        scores[UNQUANTIZED].append(reference.score)
        for entry in formats:
            score = evaluate_segment(language_model, reference, entry, on_tokens=on_tokens)
            scores[entry.name].append(score)
    return {name: summarize(found, scores[UNQUANTIZED]) for name, found in scores.items()}
