"""Digits per layer, for keys and for values, under a budget: where a digit is worth most.

Every tensor of the body (a layer's keys or its values) costs the same for a digit, one plane a
token, so a budget in bits or in cycles is a number of digits in all. What a tensor loses by few
digits is measured, one tensor at a time while all others have five: the divergence of the model's
predictions on the calibration text. Losses are taken as adding up, and the best choice for their
sum is then found exactly, by dynamic programming over the number of digits spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.attention import ATTENTION
from golden.calibration import Calibration, calibration_text
from golden.decoding import make_cache
from golden.models import LanguageModel
from golden.versions import SinglePrecisionBackend
from kvtq_hw.codes import MAX_DIGITS, CacheCode, CodeTable
from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.packing import plane_bytes, scale_bytes

__all__ = [
    "Sensitivity",
    "allocate",
    "code_table",
    "digits_for_bits",
    "digits_for_cycles",
    "measure_sensitivity",
]

# Digits whose loss is measured. Every further one divides the step by three and the squared error,
# which the divergence follows to first order, by nine.
_MEASURED = (1, 2)
_GAIN_OF_A_DIGIT = 9.0


@dataclass(frozen=True)
class Sensitivity:
    """What each tensor loses by being short.

    keys, values : float64 [layers, MAX_DIGITS], divergence in nats a position with 1 .. 5 digits in
        the body of this layer's keys (values) alone; 0 with five
    """

    keys: Tensor
    values: Tensor

    def losses(self) -> Tensor:
        """All tensors, a layer's keys before its values: [2 * layers, MAX_DIGITS]."""
        return torch.stack([self.keys, self.values], 1).flatten(0, 1)


def measure_sensitivity(
    language_model: LanguageModel,
    calibration: Calibration,
    config: EngineConfig,
    code: CacheCode,
    tokens: int = 256,
    on_run: Callable[[], None] | None = None,
) -> Sensitivity:
    """Measure every tensor on `tokens` tokens of the calibration text, behind those calibrated on.

    Parameters
    ----------
    code : tiers and options; its digits do not count
    on_run : called after each of the ``4 * layers`` forward passes
    """
    start = calibration.tokens
    text = calibration_text()[: 10 * (start + tokens) + 1000]
    ids = language_model.tokenizer(text, return_tensors="pt").input_ids[:, start : start + tokens]
    if ids.shape[1] < tokens:
        raise UserError(
            f"calibration text has {ids.shape[1]} tokens behind the calibration; allowed is at "
            f"least {tokens}"
        )
    full = code.with_digits(MAX_DIGITS, MAX_DIGITS).for_layers(language_model.layers)

    def predictions(codes: Sequence[CacheCode]) -> Tensor:
        table = CodeTable("sensitivity", tuple(codes))
        cache = make_cache(config, table, calibration, SinglePrecisionBackend())
        with language_model.attending_with(ATTENTION), torch.inference_mode():
            return language_model.model(ids, past_key_values=cache).logits[0].log_softmax(-1)

    reference = predictions(full)
    losses = torch.zeros(2, language_model.layers, MAX_DIGITS, dtype=torch.float64)
    for layer in range(language_model.layers):
        for tensor in range(2):
            for digits in _MEASURED:
                codes = list(full)
                pair = (digits, MAX_DIGITS) if tensor == 0 else (MAX_DIGITS, digits)
                codes[layer] = code.with_digits(*pair)
                found = predictions(codes)
                divergence = (reference.exp() * (reference - found)).sum(-1).double().mean()
                losses[tensor, layer, digits - 1] = divergence
                if on_run is not None:
                    on_run()
    for digits in range(_MEASURED[-1] + 1, MAX_DIGITS):
        losses[..., digits - 1] = losses[..., digits - 2] / _GAIN_OF_A_DIGIT
    return Sensitivity(*losses)


def digits_for_bits(
    config: EngineConfig, code: CacheCode, layers: int, bits: float, tokens: int
) -> int:
    """Most digits of all tensors together within `bits` true bits an element at a context.

    Raises
    ------
    UserError
        When one digit each is too much.
    """
    plane = plane_bytes(config.packing, config.head_dim)
    tier = code.tier_tokens(tokens)
    body = tokens - tier
    vectors = 2 * layers
    budget = bits * config.head_dim * vectors * tokens / 8
    fixed = vectors * (
        tokens * scale_bytes(config) + tier * code.tier_digits(config.max_planes) * plane
    )
    spent = int((budget - fixed) // (plane * body)) if body else vectors
    if spent < vectors:
        least = (fixed + vectors * plane * body) * 8 / (config.head_dim * vectors * tokens)
        raise UserError(
            f"--bits: {bits} is too small for {code} at {tokens} tokens; allowed is at least "
            f"{least:.4g}"
        )
    return spent


def digits_for_cycles(
    config: EngineConfig, code: CacheCode, layers: int, kv_heads: int, cycles: int, tokens: int
) -> int:
    """Most digits of all tensors within `cycles` plane slices a decode step, layers and heads.

    Raises
    ------
    UserError
        When one digit each is too much.
    """
    tier = code.tier_tokens(tokens)
    slices = kv_heads * config.slices
    fixed = 2 * layers * tier * code.tier_digits(config.max_planes) * slices
    per_digit = max(tokens - tier, 1) * slices
    spent = (cycles - fixed) // per_digit
    if spent < 2 * layers:
        raise UserError(
            f"--cycles: {cycles} is too small for {code} at {tokens} tokens; allowed is at least "
            f"{fixed + 2 * layers * per_digit}"
        )
    return spent


def allocate(losses: Tensor, digits: int) -> list[int]:
    """Digits of each tensor with the least sum of losses, at most `digits` in all: exact.

    Parameters
    ----------
    losses : [n, N], loss of a tensor with 1 .. N digits
    digits : at least n

    Raises
    ------
    ValueError
        When there are fewer digits than tensors.
    """
    count, most = losses.shape
    if digits < count:
        raise ValueError(f"digits: {digits} is not allowed; {count} tensors need at least {count}")
    spare = min(digits - count, count * (most - 1))
    # best[s]: least loss of the tensors so far with s digits beyond one each
    best = torch.zeros(spare + 1, dtype=torch.float64)
    chosen = []
    for row in losses.double():
        options = torch.full((most, spare + 1), torch.inf, dtype=torch.float64)
        for extra in range(min(most, spare + 1)):
            options[extra, extra:] = best[: spare + 1 - extra] + row[extra]
        best, choice = options.min(0)
        chosen.append(choice.tolist())
    result = []
    for choice in reversed(chosen):
        extra = choice[spare]
        result.append(1 + extra)
        spare -= extra
    return result[::-1]


def code_table(name: str, code: CacheCode, digits: Sequence[int]) -> CodeTable:
    """The table of digits [2 * layers], a layer's keys before its values."""
    pairs = zip(digits[::2], digits[1::2], strict=True)
    return CodeTable(name, tuple(code.with_digits(*pair) for pair in pairs))
