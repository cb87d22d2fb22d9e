"""Greedy decoding through `generate()`, on a ternary cache or on the model's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.generation.streamers import BaseStreamer

from golden.attend.attention import ATTENTION
from golden.attend.plain_attention import PLAIN_ATTENTION
from golden.cache.attention_job import AttentionBackend
from golden.cache.ternary_cache import TernaryCache
from golden.llm.calibration import Calibration
from golden.llm.models import LanguageModel
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError

__all__ = ["Decoded", "OnToken", "decode", "decode_unquantized", "make_cache", "needed_context"]


@dataclass(frozen=True)
class Decoded:
    """The result of a greedy decoding run.

    prompt_tokens, tokens : token ids of the prompt, and of the new tokens
    text : the new tokens as text
    seconds : wall time of the decode steps, from the first new token to the last
    """

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    seconds: float

    @property
    def steps(self) -> int:
        """Number of decode steps; the prefill gives the first new token."""
        return len(self.tokens) - 1

    @property
    def tokens_per_second(self) -> float:
        """Decode steps per second; zero without decode steps."""
        return self.steps / self.seconds if self.steps else 0.0

    @property
    def context(self) -> int:
        """Number of tokens in the cache at the end; the last new token is not in the cache."""
        return len(self.prompt_tokens) + self.steps


OnToken = Callable[[Decoded], None]
"""Called after each new token with everything decoded so far."""


def make_cache(
    config: EngineConfig,
    code: CacheCode | CodeTable,
    calibration: Calibration,
    backend: AttentionBackend,
    windows: Sequence[int | None] | None = None,
) -> TernaryCache:
    """Make an empty cache for the calibrated model, with one code for all layers or per layer.

    Parameters
    ----------
    windows : sliding windows of the model's layers (`LanguageModel.windows`); no layer has one when
        None
    """
    conditioning = calibration.conditioning(feedback=code.feedback)
    return TernaryCache(config, code, conditioning, backend, windows)


def needed_context(language_model: LanguageModel, prompt: str, max_new_tokens: int) -> int:
    """Return the number of tokens in the cache at the end of a run.

    The last new token is never read, so it is not in the cache.
    """
    return len(language_model.tokenizer(prompt).input_ids) + max_new_tokens - 1


def decode(
    language_model: LanguageModel,
    prompt: str,
    max_new_tokens: int,
    cache: TernaryCache,
    on_token: OnToken | None = None,
) -> Decoded:
    """Continue a prompt greedily, with prefill and decode steps through the ternary cache.

    Raises
    ------
    UserError
        When the prompt is empty, or prompt and new tokens do not fit the cache.
    """
    return _generate(language_model, prompt, max_new_tokens, cache, on_token, ATTENTION)


def decode_unquantized(
    language_model: LanguageModel,
    prompt: str,
    max_new_tokens: int,
    on_token: OnToken | None = None,
) -> Decoded:
    """Continue a prompt greedily with the model's own cache and attention."""
    return _generate(language_model, prompt, max_new_tokens, None, on_token, PLAIN_ATTENTION)


def _generate(
    language_model: LanguageModel,
    prompt: str,
    max_new_tokens: int,
    cache: TernaryCache | None,
    on_token: OnToken | None,
    attention: str,
) -> Decoded:
    inputs = language_model.tokenizer(prompt, return_tensors="pt")
    prompt_tokens = inputs.input_ids[0].tolist()
    if not prompt_tokens:
        raise UserError(f"prompt: {prompt!r} has no tokens; allowed are prompts of at least one")
    limits = {
        f"the model's positions, {language_model.max_positions}": language_model.max_positions
    }
    if cache is not None:
        limit = cache.get_max_length()
        limits[f"max_context = {limit}"] = limit
    needed = len(prompt_tokens) + max_new_tokens - 1  # the last new token is never read
    for name, limit in limits.items():
        if needed > limit:
            raise UserError(
                f"prompt: {len(prompt_tokens)} tokens and {max_new_tokens} new ones need a context "
                f"of {needed}; allowed is at most {name}"
            )
    options: dict[str, Cache] = {} if cache is None else {"past_key_values": cache}
    streamer = _Streamer(language_model, on_token)
    with language_model.attending_with(attention), torch.inference_mode():
        language_model.model.generate(
            **inputs,
            **options,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=language_model.tokenizer.pad_token_id,
            streamer=streamer,
        )
    return streamer.decoded()


class _Streamer(BaseStreamer):
    """Collects the tokens of one sequence, and the times of the first and the last new token."""

    def __init__(self, language_model: LanguageModel, on_token: OnToken | None) -> None:
        self._tokenizer = language_model.tokenizer
        self._on_token = on_token
        self._prompt: tuple[int, ...] | None = None
        self._tokens: list[int] = []
        self._first_time = self._last_time = 0.0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token at a time."""
        if self._prompt is None:
            self._prompt = tuple(value.flatten().tolist())
            return
        self._tokens += value.flatten().tolist()
        self._last_time = time.perf_counter()
        if len(self._tokens) == 1:
            self._first_time = self._last_time
        if self._on_token:
            self._on_token(self.decoded())

    def end(self) -> None:
        """Do nothing: the base class requires this method."""

    def decoded(self) -> Decoded:
        """Return the result so far."""
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        seconds = self._last_time - self._first_time
        return Decoded(self._prompt or (), tuple(self._tokens), text, seconds)
