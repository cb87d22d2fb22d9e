"""Allocates digits per layer, for keys and for values, under a budget: where a digit helps most.

A digit of a tensor (a layer's keys or its values) costs one plane per token of the layer's body. A
layer with a sliding window has fewer tokens in its body than the other layers, so its digits cost
less. A budget says what a digit of each tensor costs, and what all may cost together.

The loss of a tensor with few digits is estimated to second order. Let e_j be the error of token j's
vector, and g_j the gradient of the negative log-likelihood with respect to this vector. The error
costs a divergence of ``(g_j . e_j)**2 / 2`` in expectation, if the text is drawn from the model's
own predictions, because the curvature of the divergence is then the covariance of the gradients.
One backward pass per sequence gives g_j for all tensors; the quantizer gives e_j for every number
of digits. The product is formed token by token, because vectors with large gradients are often
small. Losses of tensors are assumed to add up. Dynamic programming over what is spent then finds
the allocation with the least sum exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from golden.causal import causal_mask
from golden.conditioning import Conditioning
from golden.learned_sinks import softmax
from golden.llm.anchor_thresholds import anchors_of_text
from golden.llm.calibration import Calibration
from golden.llm.models import LanguageModel
from golden.llm.sampling import sample_tokens
from golden.llm.watching import LayerInputs, watched
from golden.study.coding_error import coding_errors
from kvtq_hw.contract.codes import MAX_DIGITS, CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import SIDES, Side
from kvtq_hw.contract.packing import plane_bytes, scale_bytes
from kvtq_hw.contract.tiers import Tiers

__all__ = [
    "Budget",
    "Sensitivity",
    "allocate",
    "bits_budget",
    "code_table",
    "cycles_budget",
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
    conditioning = calibration.conditioning(feedback=code.feedback)
    for ids in sample_tokens(language_model, tokens, _SEQUENCE, seed=_SEED):
        passes = _gradients(language_model, ids, code, calibration.anchor_thresholds)
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


def _gradients(
    language_model: LanguageModel, ids: Tensor, code: CacheCode, thresholds: Tensor
) -> list[_LayerPass]:
    """Run a text [T] forwards and backwards; return each layer's vectors and gradients.

    Parameters
    ----------
    thresholds : int64 [layers, kv_heads], of anchors
    """
    ids = language_model.placed(ids)
    tiers = [of_layer.tiers for of_layer in code.for_layers(language_model.windows)]
    masks = [_masks(of_layer, len(ids), ids.device) for of_layer in tiers]
    states: dict[int, tuple[Tensor, Tensor]] = {}
    moves: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(inputs: LayerInputs) -> Tensor:
        """Compute attention with a shift of zero added to keys and values in the body."""
        seen, body = masks[inputs.layer]
        query, key, value = (x.float() for x in (inputs.queries, inputs.keys, inputs.values))
        key_move, value_move = (torch.zeros_like(x, requires_grad=True) for x in (key, value))
        states[inputs.layer] = key.detach(), value.detach()
        moves[inputs.layer] = key_move, value_move
        grouped = query.unflatten(0, (key.shape[0], -1)) * inputs.scaling
        if tiers[inputs.layer].anchors:
            kept = anchors_of_text(
                *(grouped.detach(), key.detach(), 1.0),
                thresholds[inputs.layer],
                tiers[inputs.layer],
            )
            body = body & ~kept[:, None, None]
        scores = grouped @ key[:, None].mT + (grouped @ key_move[:, None].mT) * body
        sinks = inputs.sink_logits
        of_groups = None if sinks is None else sinks.unflatten(0, (key.shape[0], -1))
        weights = softmax(scores.masked_fill(~seen, -math.inf), of_groups)
        outputs = weights @ value[:, None] + (weights * body) @ value_move[:, None]
        return outputs.flatten(0, 1).to(inputs.queries.dtype)

    with watched(language_model, attend), torch.enable_grad():
        logits = language_model.model(ids[None], use_cache=False).logits[0, :-1].float()
        loss = -logits.log_softmax(-1).gather(-1, ids[1:, None]).sum()
        leaves = [move for layer in range(language_model.layers) for move in moves[layer]]
        gradients = torch.autograd.grad(loss, leaves)
    pairs = zip(gradients[::2], gradients[1::2], strict=True)
    return [_LayerPass(*states[layer], pair) for layer, pair in enumerate(pairs)]


def _masks(tiers: Tiers, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which tokens each query sees, and which of them in the body: bool [tokens, tokens]."""
    position = torch.arange(tokens, device=device)
    seen = causal_mask(tokens, tokens, tiers.sliding, device)
    older = position[:, None] - position >= max(tiers.window, 1)
    return seen, seen & older & (position >= tiers.sinks)


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


@dataclass(frozen=True)
class Budget:
    """What may be spent, and what digits cost: bytes of one KV head, or slices of all.

    Attributes
    ----------
    costs : cost of a digit of each tensor [2 * layers], keys before values per layer; digits of a
        tensor without body tokens are free
    fixed : cost of sinks, window and scales, whatever the digits
    most : most that everything may cost
    """

    costs: tuple[int, ...]
    fixed: int
    most: int

    @property
    def least(self) -> int:
        """Cost of one digit in every tensor."""
        return self.spent([1] * len(self.costs))

    def spent(self, digits: Sequence[int]) -> int:
        """Return what everything costs with these digits [2 * layers]."""
        return self.fixed + sum(cost * n for cost, n in zip(self.costs, digits, strict=True))


def bits_budget(
    config: EngineConfig,
    code: CacheCode,
    windows: Sequence[int | None],
    bits: float,
    tokens: int,
) -> Budget:
    """Return the budget in bytes of one KV head of all layers.

    Parameters
    ----------
    windows : sliding window of each layer in tokens, None in layers without
    bits : true bits per element at a context of `tokens` tokens: everything that is stored, scales
        and tiers included, over all stored elements

    Raises
    ------
    UserError
        When one digit per tensor, or the tiers alone, exceed the budget.
    """
    codes = code.for_layers(windows)
    plane, scale = plane_bytes(config.packing, config.head_dim), scale_bytes(config)
    stored = sum(of_layer.tiers.spread(tokens).tokens for of_layer in codes)
    elements = len(SIDES) * config.head_dim * stored
    tier = code.tier_digits(config.max_planes) * plane + scale
    most = int(bits * elements / 8)
    budget = _budget(codes, tokens, most, tier=tier, body=scale, digit=plane)
    if budget.least > budget.most:
        raise UserError(
            f"bits: {bits} is too small for {code} at {tokens} tokens; allowed is at least "
            f"{8 * budget.least / elements:.4g}"
        )
    return budget


def cycles_budget(
    config: EngineConfig,
    code: CacheCode,
    windows: Sequence[int | None],
    kv_heads: int,
    cycles: int,
    tokens: int,
) -> Budget:
    """Return the budget in slices per decode step, of all layers and KV heads.

    Parameters
    ----------
    windows : sliding window of each layer in tokens, None in layers without
    cycles : slices at a context of `tokens` tokens

    Raises
    ------
    UserError
        When one digit per tensor exceeds the budget, or when the engine takes several planes per
        slice, because not every digit then costs a slice.
    """
    if max(config.key_planes_per_cycle, config.value_planes_per_cycle) > 1:
        raise UserError(
            f"cycles: {config.name} takes {config.key_planes_per_cycle} planes of keys and "
            f"{config.value_planes_per_cycle} of values per cycle; allowed is one of each"
        )
    slices = kv_heads * config.slices
    tier = code.tier_digits(config.max_planes) * slices
    codes = code.for_layers(windows)
    budget = _budget(codes, tokens, cycles, tier=tier, body=0, digit=slices)
    if budget.least > cycles:
        raise UserError(
            f"cycles: {cycles} is too small for {code} at {tokens} tokens; allowed is at least "
            f"{budget.least}"
        )
    return budget


def _budget(
    codes: Sequence[CacheCode], tokens: int, most: int, *, tier: int, body: int, digit: int
) -> Budget:
    """Return a budget.

    Parameters
    ----------
    tier, body : cost of a vector in a tier, and of a vector in the body without its digits
    digit : cost of a digit of a vector
    """
    return Budget(
        tuple(
            digit * (code.tiers.body(tokens) - code.tiers.expected_anchors(tokens))
            for code in codes
            for _ in SIDES
        ),
        len(SIDES) * sum(code.tiers.total(tokens, tier, body) for code in codes),
        most,
    )


def allocate(losses: Tensor, budget: Budget) -> list[int]:
    """Return the digits of each tensor, within a budget, with the least sum of losses.

    Kept are the sums of costs that tensors so far can have, each with its least loss, if no smaller
    sum has less. They are few, because the layers of a model have few different costs.

    Parameters
    ----------
    losses : [n, N], loss of each of n tensors with 1 .. N digits

    Raises
    ------
    ValueError
        When one digit per tensor exceeds the budget, or budget and losses are of other tensors.
    """
    if budget.least > budget.most:
        raise ValueError(
            f"most: {budget.most} is not allowed; one digit in each of {len(budget.costs)} tensors "
            f"costs {budget.least}"
        )
    costs, sums = np.zeros(1, np.int64), np.zeros(1)
    steps = []
    for cost, row in zip(budget.costs, losses.double().numpy(), strict=True):
        before = len(costs)
        costs = (costs + cost * np.arange(len(row))[:, None]).ravel()
        sums = (sums + row[:, None]).ravel()
        order = np.lexsort((sums, costs))  # the fewest digits of this tensor first among equals
        order = order[costs[order] <= budget.most - budget.least]
        best = np.minimum.accumulate(sums[order])
        order = order[np.append(True, best[1:] < best[:-1])]
        costs, sums = costs[order], sums[order]
        steps.append((order // before, order % before))
    result, place = [], -1
    for extra, origin in reversed(steps):
        result.append(1 + int(extra[place]))
        place = origin[place]
    return result[::-1]


def code_table(
    name: str, code: CacheCode, digits: Sequence[int], windows: Sequence[int | None]
) -> CodeTable:
    """Make a code table from digits [2 * layers], keys before values per layer.

    Parameters
    ----------
    windows : sliding window of each layer in tokens, None in layers without; the table says them if
        any layer has one
    """
    pairs = zip(digits[::2], digits[1::2], strict=True)
    shared = replace(code, tiers=code.tiers.sliding_over(None))
    codes = tuple(shared.with_digits(*pair) for pair in pairs)
    return CodeTable(name, codes, tuple(windows) if any(windows) else None)
