"""Allocates digits per layer, for keys and for values, under a budget: where a digit helps most.

A digit costs the same in every tensor of the body (a layer's keys or its values), one plane per
token. A budget in bits or in cycles is therefore a total number of digits.

The loss of a tensor with few digits is estimated to second order. Let e_j be the error of token j's
vector, and g_j the gradient of the negative log-likelihood with respect to this vector. The error
costs a divergence of ``(g_j . e_j)**2 / 2`` in expectation, if the text is drawn from the model's
own predictions, because the curvature of the divergence is then the covariance of the gradients.
One backward pass per sequence gives g_j for all tensors; the quantizer gives e_j for every number
of digits. The product is formed token by token, because vectors with large gradients are often
small. Losses of tensors are assumed to add up. Dynamic programming over the number of digits spent
then finds the allocation with the least sum exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.conditioning import Conditioning
from golden.learned_sinks import softmax
from golden.llm.calibration import Calibration
from golden.llm.models import LanguageModel
from golden.llm.sampling import sample_tokens
from golden.llm.watching import LayerInputs, watched
from golden.study.coding_error import coding_errors
from kvtq_hw.contract.codes import MAX_DIGITS, CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import Side
from kvtq_hw.contract.packing import plane_bytes, scale_bytes

__all__ = [
    "Sensitivity",
    "allocate",
    "code_table",
    "digits_for_bits",
    "digits_for_cycles",
    "measure_sensitivity",
]

# Largest number of digits whose loss is measured. Every further digit divides the step by three and
# the squared error, to which the divergence is proportional, by nine.
_MEASURED = 3
_GAIN_OF_A_DIGIT = 9.0
# Tokens per backward pass, which takes memory quadratic in this number.
_SEQUENCE = 512
# Seed of the sampled text; calibration uses seed 0, so the texts differ.
_SEED = 1


@dataclass(frozen=True)
class Sensitivity:
    """The loss of each tensor for each number of digits.

    keys, values : float64 [layers, MAX_DIGITS], divergence in nats per position when only the body
        of this layer's keys (values) has 1 .. 5 digits; the divergence with five counts as 0
    """

    keys: Tensor
    values: Tensor

    def losses(self) -> Tensor:
        """Return all losses [2 * layers, MAX_DIGITS], keys before values per layer."""
        return torch.stack([self.keys, self.values], 1).flatten(0, 1)


def measure_sensitivity(
    language_model: LanguageModel,
    calibration: Calibration,
    config: EngineConfig,
    code: CacheCode,
    tokens: int = 2048,
    on_tokens: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Estimate every tensor's losses on tokens that the model writes itself.

    Parameters
    ----------
    code : tiers and options; the digits are ignored
    tokens : number of tokens of the text, which is not the calibration text
    on_tokens : called after each sequence with the sequence's number of tokens
    """
    losses = torch.zeros(2, language_model.layers, MAX_DIGITS, dtype=torch.float64)
    conditioning = calibration.conditioning()
    for ids in sample_tokens(language_model, tokens, _SEQUENCE, seed=_SEED):
        passes = _gradients(language_model, ids, code)
        for layer, of_layer in enumerate(passes):
            condition = conditioning[layer]
            for index, errors in enumerate(
                (
                    _errors(config, code, "key", of_layer.keys, condition),
                    _errors(config, code, "value", of_layer.values, condition),
                )
            ):
                gradient = of_layer.gradients[index].double()
                moved = (gradient * errors).sum(-1).square().sum((-2, -1))  # [digits]
                losses[index, layer, : len(moved)] += (moved / 2).cpu()
        if on_tokens is not None:
            on_tokens(len(ids))
    losses /= tokens
    for digits in range(min(_MEASURED, config.max_planes) + 1, MAX_DIGITS):
        losses[..., digits - 1] = losses[..., digits - 2] / _GAIN_OF_A_DIGIT
    losses[..., MAX_DIGITS - 1] = 0
    return Sensitivity(*losses)


@dataclass(frozen=True)
class _LayerPass:
    """A layer's keys and values [kv_heads, T, D], and the gradients with respect to both.

    Gradients count only queries that see the token in no tier.
    """

    keys: Tensor
    values: Tensor
    gradients: tuple[Tensor, Tensor]


def _gradients(language_model: LanguageModel, ids: Tensor, code: CacheCode) -> list[_LayerPass]:
    """Run a text [T] forwards and backwards; return each layer's vectors and gradients."""
    ids = language_model.placed(ids)
    position = torch.arange(len(ids), device=ids.device)
    causal = position[:, None] >= position
    tiers = code.tiers
    body = (position[:, None] - position >= max(tiers.window, 1)) & (position >= tiers.sinks)
    states: dict[int, tuple[Tensor, Tensor]] = {}
    moves: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(inputs: LayerInputs) -> Tensor:
        """Compute attention with a shift of zero added to keys and values in the body."""
        query, key, value = (x.float() for x in (inputs.queries, inputs.keys, inputs.values))
        key_move, value_move = (torch.zeros_like(x, requires_grad=True) for x in (key, value))
        states[inputs.layer] = key.detach(), value.detach()
        moves[inputs.layer] = key_move, value_move
        grouped = query.unflatten(0, (key.shape[0], -1)) * inputs.scaling
        scores = grouped @ key[:, None].mT + (grouped @ key_move[:, None].mT) * body
        sinks = inputs.sink_logits
        of_groups = None if sinks is None else sinks.unflatten(0, (key.shape[0], -1))
        weights = softmax(scores.masked_fill(~causal, -math.inf), of_groups)
        outputs = weights @ value[:, None] + (weights * body) @ value_move[:, None]
        return outputs.flatten(0, 1).to(inputs.queries.dtype)

    with watched(language_model, attend), torch.enable_grad():
        logits = language_model.model(ids[None], use_cache=False).logits[0, :-1].float()
        loss = -logits.log_softmax(-1).gather(-1, ids[1:, None]).sum()
        leaves = [move for layer in range(language_model.layers) for move in moves[layer]]
        gradients = torch.autograd.grad(loss, leaves)
    pairs = zip(gradients[::2], gradients[1::2], strict=True)
    return [_LayerPass(*states[layer], pair) for layer, pair in enumerate(pairs)]


def _errors(
    config: EngineConfig,
    code: CacheCode,
    side: Side,
    vectors: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """Return the body's rounding errors of vectors [heads, T, D] with 1 .. 3 digits.

    The errors [digits, heads, T, D] are in the model's own units and for unrotated vectors; keys
    include their centres.
    """
    return torch.stack(
        [
            coding_errors(config, code.with_digits(digits, digits), side, vectors, conditioning)
            for digits in range(1, min(_MEASURED, config.max_planes) + 1)
        ]
    )


def digits_for_bits(
    config: EngineConfig, code: CacheCode, layers: int, bits: float, tokens: int
) -> int:
    """Return the largest total of digits of all tensors within a budget of true bits per element.

    Parameters
    ----------
    bits : budget per cached element at a context of `tokens` tokens, scales and tiers included

    Raises
    ------
    UserError
        When one digit per tensor, or the tiers alone, exceed the budget.
    """
    plane, scale = plane_bytes(config.packing, config.head_dim), scale_bytes(config)
    vectors = 2 * layers
    elements = config.head_dim * vectors * tokens
    tier = code.tier_digits(config.max_planes) * plane + scale
    fixed = vectors * code.tiers.total(tokens, tier, scale)
    per_digit = code.tiers.total(tokens, 0, plane)  # bytes of one tensor's body
    if fixed + vectors * per_digit > bits * elements / 8:
        least = (fixed + vectors * per_digit) * 8 / elements
        raise UserError(
            f"bits: {bits} is too small for {code} at {tokens} tokens; allowed is at least "
            f"{least:.4g}"
        )
    return _within(config, vectors, bits * elements / 8 - fixed, per_digit)


def digits_for_cycles(
    config: EngineConfig, code: CacheCode, layers: int, kv_heads: int, cycles: int, tokens: int
) -> int:
    """Return the largest total of digits of all tensors within a budget of slices per decode step.

    Parameters
    ----------
    cycles : budget of all layers and KV heads at a context of `tokens` tokens

    Raises
    ------
    UserError
        When one digit per tensor exceeds the budget, or when the engine takes several planes per
        slice, because digits of different tensors then no longer cost the same.
    """
    if max(config.key_planes_per_cycle, config.value_planes_per_cycle) > 1:
        raise UserError(
            f"cycles: {config.name} takes {config.key_planes_per_cycle} planes of keys and "
            f"{config.value_planes_per_cycle} of values per cycle; allowed is one of each"
        )
    vectors = 2 * layers
    slices = kv_heads * config.slices
    fixed = vectors * code.tiers.total(tokens, code.tier_digits(config.max_planes) * slices, 0)
    per_digit = code.tiers.total(tokens, 0, slices)
    if fixed + vectors * per_digit > cycles:
        raise UserError(
            f"cycles: {cycles} is too small for {code} at {tokens} tokens; allowed is at least "
            f"{fixed + vectors * per_digit}"
        )
    return _within(config, vectors, cycles - fixed, per_digit)


def _within(config: EngineConfig, vectors: int, budget: float, per_digit: int) -> int:
    """Return the total of digits within a budget; digits are free if the body has no tokens."""
    most = vectors * min(MAX_DIGITS, config.max_planes)
    return most if per_digit == 0 else min(most, int(budget // per_digit))


def allocate(losses: Tensor, digits: int) -> list[int]:
    """Return the digits of each tensor, at most `digits` in total, with the least sum of losses.

    Parameters
    ----------
    losses : [n, N], loss of each of n tensors with 1 .. N digits
    digits : largest total, at least n

    Raises
    ------
    ValueError
        When there are fewer digits than tensors.
    """
    count, most = losses.shape
    if digits < count:
        raise ValueError(f"digits: {digits} is not allowed; {count} tensors need at least {count}")
    spare = min(digits - count, count * (most - 1))
    # best[s]: least loss of the tensors so far with s digits beyond one per tensor
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
    """Make a code table from digits [2 * layers], keys before values per layer."""
    pairs = zip(digits[::2], digits[1::2], strict=True)
    return CodeTable(name, tuple(code.with_digits(*pair) for pair in pairs))
