"""Digits per layer, for keys and for values, under a budget: where a digit is worth most.

Every tensor of the body (a layer's keys or its values) costs the same for a digit, one plane per
token, so a budget in bits or in cycles is a number of digits in all. What a tensor loses by few
digits is estimated to second order: an error e_j of token j's vector, with g_j the gradient of the
negative log-likelihood with respect to that vector, costs a divergence of ``(g_j . e_j)**2 / 2`` in
expectation, if the text is drawn from the model's own predictions (the curvature of the divergence
is then the covariance of the gradients). One backward pass a sequence gives g_j for all tensors,
the quantizer gives e_j for every number of digits. Token by token, because vectors with large
gradients are often small ones. Losses are taken as adding up, and the best choice for their sum is
then found exactly, by dynamic programming over the number of digits spent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from golden.conditioning import Conditioning
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

# Digits whose loss is measured. Every further one divides the step by three and the squared error,
# which the divergence follows, by nine.
_MEASURED = 3
_GAIN_OF_A_DIGIT = 9.0
# Tokens of one backward pass, which takes memory in their square.
_SEQUENCE = 512
# Another text than the one of the calibration, whose seed is 0.
_SEED = 1


@dataclass(frozen=True)
class Sensitivity:
    """What each tensor loses by being short.

    keys, values : float64 [layers, MAX_DIGITS], divergence in nats a position with 1 .. 5 digits in
        the body of this layer's keys (values) alone; that of five counts as 0
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
    tokens: int = 2048,
    on_tokens: Callable[[int], None] | None = None,
) -> Sensitivity:
    """Estimate every tensor's losses on tokens that the model writes itself.

    Parameters
    ----------
    code : tiers and options; its digits do not count
    tokens : not those calibrated on
    on_tokens : called after each sequence with the number of its tokens
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
                losses[index, layer, : len(moved)] += moved / 2
        if on_tokens is not None:
            on_tokens(len(ids))
    losses /= tokens
    for digits in range(min(_MEASURED, config.max_planes) + 1, MAX_DIGITS):
        losses[..., digits - 1] = losses[..., digits - 2] / _GAIN_OF_A_DIGIT
    losses[..., MAX_DIGITS - 1] = 0
    return Sensitivity(*losses)


@dataclass(frozen=True)
class _LayerPass:
    """A layer's keys and values [kv_heads, T, D], and the gradients with respect to them.

    The gradients are those of the body: as read by queries that see the token in no tier.
    """

    keys: Tensor
    values: Tensor
    gradients: tuple[Tensor, Tensor]


def _gradients(language_model: LanguageModel, ids: Tensor, code: CacheCode) -> list[_LayerPass]:
    """Run a text [T] forwards and backwards."""
    position = torch.arange(len(ids))
    causal = position[:, None] >= position
    tiers = code.tiers
    body = (position[:, None] - position >= max(tiers.window, 1)) & (position >= tiers.sinks)
    states: dict[int, tuple[Tensor, Tensor]] = {}
    moves: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(inputs: LayerInputs) -> Tensor:
        """Attention to keys and values that are moved, by zero, where they are in the body."""
        key, value = inputs.keys, inputs.values
        key_move, value_move = (torch.zeros_like(x, requires_grad=True) for x in (key, value))
        states[inputs.layer] = key.detach(), value.detach()
        moves[inputs.layer] = key_move, value_move
        grouped = inputs.queries.unflatten(0, (key.shape[0], -1)) * inputs.scaling
        scores = grouped @ key[:, None].mT + (grouped @ key_move[:, None].mT) * body
        weights = torch.softmax(scores.masked_fill(~causal, -math.inf), -1)
        outputs = weights @ value[:, None] + (weights * body) @ value_move[:, None]
        return outputs.flatten(0, 1)

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
    """What the body's code with 1 .. 3 digits adds to vectors [heads, T, D]: [digits, heads, T, D].

    In the model's own units and its own, unrotated domain; keys with their centre.
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
    """Return the most digits of all tensors together within a budget of true bits per element.

    Parameters
    ----------
    bits : budget per cached number at a context of `tokens` tokens, scales and tiers included

    Raises
    ------
    UserError
        When one digit each is too much, or the tiers alone are.
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
    """Return the most digits of all tensors within a budget of plane slices per decode step.

    Parameters
    ----------
    cycles : budget of all layers and KV heads at a context of `tokens` tokens

    Raises
    ------
    UserError
        When one digit each is too much, or the engine takes several planes per slice: digits of
        different tensors are then no longer worth the same.
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
    """Digits of all tensors within a budget; where all tokens are in tiers, digits cost nothing."""
    most = vectors * min(MAX_DIGITS, config.max_planes)
    return most if per_digit == 0 else min(most, int(budget // per_digit))


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
