"""Model quality through the cache: perplexity, divergence from the unquantized model, agreement.

A text is cut into consecutive segments of `context` tokens. Each segment is evaluated on its own
from an empty cache. Where the model's tokenizer puts a beginning-of-text token before a text, this
token is the first of each segment, and the segment's other tokens continue the text where the
segment before ended: models that were trained with the token predict badly without it. Other models
get none. A segment is fed teacher-forced, in chunks: every forward pass appends its tokens to the
cache, and the attention of these tokens reads only the cache. So each of the ``context - 1``
predicted positions sees keys and values as the format stores them, including those of its own
token. Formats with tiers show every query the same state as token by token. Chunks therefore change
speed and memory, but not the result.

All results are compared with the same model on its own, unquantized cache: the *reference*.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor
from transformers import Cache, DynamicCache

from golden.attend.plain_attention import PLAIN_ATTENTION
from golden.cache.saturation import saturation
from golden.llm.models import LanguageModel
from golden.study.formats import CacheFormat
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import write_bytes

__all__ = [
    "DEFAULT_CHUNK",
    "OnTokens",
    "Quality",
    "Reference",
    "SegmentScore",
    "cut_segments",
    "documentation_text",
    "evaluate_reference",
    "evaluate_segment",
    "feed",
    "load_reference",
    "save_reference",
    "summarize",
]

DEFAULT_CHUNK = 256
# Most predicted positions whose predictions are compared at a time.
_ROWS = 64

OnTokens = Callable[[int], None]
"""Called after each chunk with the number of tokens fed since the last call."""


@dataclass(frozen=True)
class SegmentScore:
    """Sums over the predicted positions of one segment.

    tokens : predicted positions, one fewer than the segment has tokens
    nll : negative log-likelihood of the right tokens, nats
    kld : Kullback-Leibler divergence from the reference's predictions, nats
    same_top1 : positions whose most likely token is the reference's
    stored_bytes, stored_elements : size of the cache after the whole segment, all overhead included
    saturated : elements of keys and values that did not fit the 16 bits of the calibration
    """

    tokens: int
    nll: float
    kld: float
    same_top1: int
    stored_bytes: int
    stored_elements: int
    saturated: int


@dataclass(frozen=True)
class Quality:
    """Quality of a model with its cache in some format.

    perplexity : exp of the mean negative log-likelihood
    perplexity_ratio : perplexity relative to the reference's on the same segments
    kld : mean Kullback-Leibler divergence from the reference, nats per position
    top1_agreement : share of positions with the reference's most likely token
    bits_per_element : stored bits per cached element at the full context
    tokens : predicted positions
    saturated, saturated_share : elements of keys and values that did not fit the 16 bits of the
        calibration, and their share of all
    """

    perplexity: float
    perplexity_ratio: float
    kld: float
    top1_agreement: float
    bits_per_element: float
    tokens: int
    saturated: int
    saturated_share: float


@dataclass(frozen=True)
class Reference:
    """Predictions and score of the unquantized model on one segment.

    tokens : int64 [T], the segment
    log_probabilities : float32 [T - 1, vocabulary], predictions of tokens 1 .. T - 1, on the
        model's device
    score : sums of the reference itself; divergence is zero, agreement is total
    """

    tokens: Tensor
    log_probabilities: Tensor
    score: SegmentScore


def documentation_text() -> str:
    """Return English text that comes with every Python: its documentation's topics, by name."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def cut_segments(
    language_model: LanguageModel, text: str, context: int, segments: int
) -> list[Tensor]:
    """Cut the first `segments` consecutive pieces of `context` tokens, int64 [context] each.

    A piece begins with the model's beginning-of-text token if it has one; the piece's other tokens
    are the text's.

    Raises
    ------
    UserError
        When the text is too short, or the context too short or longer than the model's positions.
    """
    limit = language_model.max_positions
    if not 2 <= context <= limit:
        raise UserError(
            f"context: {context} is not allowed; must be 2..{limit}, the positions of model "
            f"{language_model.name!r}"
        )
    room = context - len(language_model.beginning)
    needed = room * segments
    ids: list[int] = []
    for piece in _pieces(text, 10 * needed + 1000):
        ids = language_model.tokenizer(piece, add_special_tokens=False).input_ids
        if len(ids) > needed:  # beyond the last needed token, where a cut text could differ
            break
    if len(ids) < needed:
        raise UserError(
            f"text has {len(ids)} tokens; {segments} segments of {context} need {needed}"
        )
    pieces = torch.tensor(ids[:needed]).split(room)
    return [torch.cat([torch.tensor(language_model.beginning).long(), piece]) for piece in pieces]


def evaluate_reference(
    language_model: LanguageModel,
    tokens: Tensor,
    *,
    chunk: int = DEFAULT_CHUNK,
    on_tokens: OnTokens | None = None,
) -> Reference:
    """Predict a segment with the unquantized model.

    Predictions are [T - 1, vocabulary] floats: 200 MB for 1024 x 49152, 1.07 GB for 1024 x 262144.
    """
    cache = DynamicCache()
    log_probabilities = torch.empty(0)
    with language_model.attending_with(PLAIN_ATTENTION):
        for start, logits in feed(language_model, tokens, cache, chunk, on_tokens):
            if start == 0:  # made whole: a concatenation of chunks would take twice the memory
                log_probabilities = logits.new_empty(tokens.numel() - 1, logits.shape[-1])
            for rows, found in _predictions(logits):
                log_probabilities[start:][rows] = found
    layers = [layer for layer in cache.layers if layer.keys is not None]
    held = [states for layer in layers for states in (layer.keys, layer.values)]
    score = SegmentScore(
        tokens=tokens.numel() - 1,
        nll=_nll(log_probabilities, language_model.placed(tokens[1:])),
        kld=0.0,
        same_top1=tokens.numel() - 1,
        stored_bytes=sum(states.numel() * states.element_size() for states in held),
        stored_elements=sum(states.numel() for states in held),
        saturated=0,
    )
    return Reference(tokens, log_probabilities, score)


def save_reference(file: Path, reference: Reference) -> None:
    """Write predictions to a file, whole or not at all; raise `UserError` on failure."""
    data = reference.log_probabilities.cpu().contiguous()
    metadata = {"sha256": _sha256(data)}
    write_bytes(file, serialized({"log_probabilities": data}, metadata), "predictions")


def load_reference(file: Path, tokens: Tensor, score: SegmentScore) -> Reference | None:
    """Read the predictions that `save_reference` wrote; None if the file is absent or damaged."""
    try:
        with safe_open(file, "pt") as kept:
            data = kept.get_tensor("log_probabilities")
            digest = (kept.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    if data.dtype != torch.float32 or data.shape[:-1] != (tokens.numel() - 1,):
        return None
    return Reference(tokens, data, score) if _sha256(data) == digest else None


def _sha256(data: Tensor) -> str:
    return hashlib.sha256(data.numpy().data).hexdigest()


def evaluate_segment(
    language_model: LanguageModel,
    reference: Reference,
    cache_format: CacheFormat,
    *,
    chunk: int = DEFAULT_CHUNK,
    on_tokens: OnTokens | None = None,
) -> SegmentScore:
    """Feed the reference's segment through an empty cache of a format and compare."""
    cache, tokens = cache_format.make_cache(), language_model.placed(reference.tokens)
    chunk = min(chunk, cache_format.longest_chunk or chunk)
    nll = kld = 0.0
    same = 0
    with language_model.attending_with(cache_format.attention):
        for start, logits in feed(language_model, tokens, cache, chunk, on_tokens):
            for_rows = []
            for rows, found in _predictions(logits):
                expected = reference.log_probabilities[start:][rows]
                right = tokens[start + 1 :][rows, None]
                for_rows.append((found.gather(-1, right)[:, 0], _divergence(expected, found)))
                same += int((expected.argmax(-1) == found.argmax(-1)).sum())
            likelihoods, divergences = (torch.cat(parts) for parts in zip(*for_rows, strict=True))
            nll -= likelihoods.double().sum().item()
            kld += divergences.double().sum().item()
    stored_bytes, stored_elements = cache_format.stored(cache)
    saturated = saturation(cache).elements
    predicted = tokens.numel() - 1
    return SegmentScore(predicted, nll, kld, same, stored_bytes, stored_elements, saturated)


def feed(
    language_model: LanguageModel,
    tokens: Tensor,
    cache: Cache,
    chunk: int,
    on_tokens: OnTokens | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Append tokens [T] to a cache, chunk by chunk.

    Yields the index of a chunk's first token and the logits [n, vocabulary] that predict the token
    after each token of the chunk. The segment's last token predicts no token of the segment; it is
    fed without logits, so that the cache ends with all T tokens.
    """
    for start in range(0, tokens.numel(), chunk):
        piece = language_model.placed(tokens)[None, start : start + chunk]
        with torch.inference_mode():
            logits = language_model.model(piece, past_key_values=cache, use_cache=True).logits[0]
        if start + chunk >= tokens.numel():
            logits = logits[:-1]
        if len(logits):
            yield start, logits.float()
        if on_tokens is not None:
            on_tokens(piece.numel())


def summarize(scores: Iterable[SegmentScore], references: Iterable[SegmentScore]) -> Quality:
    """Summarize quality over segments from the scores of a format and of the reference."""
    scores, references = list(scores), list(references)
    tokens = sum(score.tokens for score in scores)
    nll = sum(score.nll for score in scores) / tokens
    reference_nll = sum(score.nll for score in references) / tokens
    if [score.tokens for score in scores] != [score.tokens for score in references]:
        raise ValueError("scores and references are not of the same segments")
    stored_bytes = sum(score.stored_bytes for score in scores)
    stored_elements = sum(score.stored_elements for score in scores)
    saturated = sum(score.saturated for score in scores)
    return Quality(
        perplexity=_exp(nll),
        perplexity_ratio=_exp(nll - reference_nll),
        kld=sum(score.kld for score in scores) / tokens,
        top1_agreement=sum(score.same_top1 for score in scores) / tokens,
        bits_per_element=8 * stored_bytes / stored_elements,
        tokens=tokens,
        saturated=saturated,
        saturated_share=saturated / stored_elements,
    )


def _predictions(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the log-probabilities of some of the rows of logits [n, vocabulary], with the rows.

    Temporary tensors of all rows would take several times the memory of the logits, which for a
    vocabulary of 262,144 are 270 MB for 256 rows. Pieces have an equal number of rows, no piece has
    few, since PyTorch adds up few rows in another order.
    """
    pieces = -(-len(logits) // _ROWS)
    for index in range(pieces):
        start, stop = (len(logits) * n // pieces for n in (index, index + 1))
        yield slice(start, stop), logits[start:stop].log_softmax(-1)


def _divergence(expected: Tensor, found: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of each row of log-probabilities, [n]."""
    return (expected.exp() * (expected - found)).sum(-1)


def _exp(x: float) -> float:
    """Return the exponential, infinity on overflow."""
    return math.exp(x) if x < math.log(sys.float_info.max) else math.inf


def _nll(log_probabilities: Tensor, tokens: Tensor) -> float:
    """Sum the negative log-likelihood of tokens [n] under log-probabilities [n, vocabulary]."""
    return -log_probabilities.gather(-1, tokens[:, None]).double().sum().item()


def _pieces(text: str, characters: int) -> Iterator[str]:
    """Yield longer and longer beginnings of a text, to avoid tokenizing more than needed."""
    while characters < len(text):
        yield text[:characters]
        characters *= 4
    yield text
