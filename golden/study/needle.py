"""Needles in a haystack: numbers hidden in a long context, and asked for at its end.

A haystack is a segment of `golden.study.quality`, `context` tokens with the beginning-of-text token
where the model has one, in which sentences such as "The secret number of Paris is 4821." are spread
evenly, one for each of eight cities, at depths 1/16, 3/16, ... 15/16. When the haystack is in the
cache, each city is asked for on a copy of the cache: "The secret number of Paris is". A needle is
retrieved when every token of its number is the model's most likely token after the right tokens
before it. This is equivalent to greedy decoding answering with the number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from golden.attend.plain_attention import PLAIN_ATTENTION
from golden.llm.models import LanguageModel
from golden.study.formats import CacheFormat
from golden.study.quality import DEFAULT_CHUNK, OnTokens
from kvtq_hw.contract.errors import UserError

__all__ = ["NEEDLES", "Haystack", "make_haystack", "retrieve"]

_CITIES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Tokyo", "Cairo")
_QUESTION = "\nThe secret number of {city} is"

NEEDLES = len(_CITIES)
"""Needles of a haystack."""


@dataclass(frozen=True)
class Haystack:
    """One haystack with its questions and answers.

    tokens : int64 [context]
    questions, answers : token ids of each needle's question and number
    """

    tokens: Tensor
    questions: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]


def make_haystack(language_model: LanguageModel, segment: Tensor, seed: int) -> Haystack:
    """Hide numbers in a segment [context]; the segment's last tokens are dropped to make room.

    Raises
    ------
    UserError
        When the needles leave less than half of the context to the text, or questions and answers
        behind the context exceed the model's positions.
    """
    generator = random.Random(seed)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(language_model.tokenizer(text, add_special_tokens=False).input_ids)

    numbers = [str(generator.randrange(1000, 10000)) for _ in _CITIES]
    questions = tuple(ids(_QUESTION.format(city=city)) for city in _CITIES)
    answers = tuple(ids(f" {number}") for number in numbers)
    end = ids(".\n")
    needles = [
        (*question, *answer, *end) for question, answer in zip(questions, answers, strict=True)
    ]
    room = len(segment) - sum(map(len, needles))
    if 2 * room < len(segment):
        raise UserError(
            f"context: {len(segment)} is too short to hide {NEEDLES} needles of "
            f"{len(segment) - room} tokens; must be at least {2 * (len(segment) - room)}"
        )
    asked = max(
        len(question) + len(answer) for question, answer in zip(questions, answers, strict=True)
    )
    if len(segment) + asked > language_model.max_positions:
        raise UserError(
            f"context: {len(segment)} tokens and {asked} of a needle's question are more than the "
            f"model's positions, {language_model.max_positions}"
        )
    text = segment[:room].tolist()
    tokens: list[int] = []
    for index, needle in enumerate(needles):
        start, stop = ((2 * i - 1) * room // (2 * NEEDLES) for i in (index, index + 1))
        tokens += text[max(start, 0) : stop]
        tokens += needle
    tokens += text[(2 * NEEDLES - 1) * room // (2 * NEEDLES) :]
    return Haystack(torch.tensor(tokens), questions, answers)


def retrieve(
    language_model: LanguageModel,
    haystack: Haystack,
    cache_format: CacheFormat | None,
    *,
    chunk: int = DEFAULT_CHUNK,
    on_tokens: OnTokens | None = None,
) -> list[bool]:
    """Return whether each needle is retrieved, by the unquantized model when the format is None."""
    model = language_model.model
    if cache_format is None:
        cache, attention = DynamicCache(), PLAIN_ATTENTION
    else:
        cache, attention = cache_format.make_cache(), cache_format.attention
        chunk = min(chunk, cache_format.longest_chunk or chunk)
    lengths = [
        len(question) + len(answer)
        for question, answer in zip(haystack.questions, haystack.answers, strict=True)
    ]
    batch = torch.zeros(NEEDLES, max(lengths), dtype=torch.int64)
    for row, question, answer in zip(batch, haystack.questions, haystack.answers, strict=True):
        row[: len(question) + len(answer)] = torch.tensor(question + answer)
    with language_model.attending_with(attention), torch.inference_mode():
        for piece in language_model.placed(haystack.tokens)[None].split(chunk, 1):
            model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if on_tokens is not None:
                on_tokens(piece.numel())
        cache.reorder_cache(torch.zeros(NEEDLES, dtype=torch.int64))
        # no position that counts sees the padding behind a shorter question
        placed = language_model.placed(batch)
        found = model(placed, past_key_values=cache, use_cache=True).logits.argmax(-1)
    return [
        row[len(question) - 1 :][: len(answer)].tolist() == list(answer)
        for row, question, answer in zip(found, haystack.questions, haystack.answers, strict=True)
    ]
