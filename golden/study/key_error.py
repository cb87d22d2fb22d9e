"""Errors of attention scores under a cache code, and a warning when they are unusually large.

Keys may be large in directions that no query reads, for example because of a large bias (Qwen 2 has
some). Such keys are rounded as coarsely as their size demands, and the rotation spreads the error
over all directions, including directions that queries read. Nothing saturates, and nothing else
reveals the problem.

The errors of scores, in nats per layer and KV head, are measured on the first tokens of Python's
documentation. They are root mean squares, weighted by attention, without the error common to all
scores of a query, which the softmax cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from golden.conditioning import Conditioning
from golden.learned_sinks import softmax
from golden.study.coded_layers import CodedLayer
from golden.study.coding_error import coding_errors
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig

__all__ = ["key_warning", "score_errors"]

# Queries with fewer tokens before them are skipped: their attention has little to get wrong.
_FIRST_QUERY = 8

#: Usual error of scores, in nats per unit of relative rounding error: an upper limit for the worst
#: head of SmolLM2-135M (2.2 to 3.7, with 1 to 5 balanced and 4 residual digits).
_USUAL = 4.0
#: Multiple of the usual error from which a warning is given. Worst heads in the same codes: the
#: seven families of tests/test_families.py, random weights, at most 1.7; a Qwen 2 of these with
#: biases of 10, 30, 100 and 600 on two key channels 1.3 to 2.1, 2.9 to 4.8, 4 to 13 and 6 to 58;
#: SmolLM2-135M with a bias of 100 on the pair of channels of the first and the last layer that
#: queries read least 2.7 to 8.3 (1.5 with one digit, which rounds coarsely everywhere).
_FAR = 2.5


def score_errors(layers: Sequence[CodedLayer]) -> Tensor:
    """Return the errors of attention scores, in nats, with body keys: float64 [layers, kv_heads].

    An error is the standard deviation of a query's score errors under the query's attention, as the
    root mean square over queries and heads.
    """
    return torch.stack([_layer_errors(layer) for layer in layers]).cpu()


def key_warning(code: CacheCode | CodeTable, layers: Sequence[CodedLayer]) -> str | None:
    """Return a one-line warning if a code moves scores far more than usual, else None."""
    errors = score_errors(layers)
    rounding = torch.tensor([[_rounding_error(layer.config, layer.code)] for layer in layers])
    times = errors / (_USUAL * rounding)
    heads = int((times > _FAR).sum())
    if not heads:
        return None
    layer, head = divmod(int(times.argmax()), errors.shape[1])
    others = f" ({heads} such heads in all)" if heads > 1 else ""
    return (
        f"layer {layer}, KV head {head}{others}: its keys are so large where no query reads that "
        f"code {str(code)!r} moves its attention scores by {errors[layer, head]:.2g} nats rms, "
        f"{times[layer, head]:.0f} times as far as usual; measure what is lost with kvtq-hw eval, "
        "or give keys more digits"
    )


def _layer_errors(layer: CodedLayer) -> Tensor:
    """Return `score_errors` of a layer, [kv_heads]. A learned sink's score has no error."""
    inputs = layer.inputs
    keys, sinks = inputs.keys, inputs.sink_logits
    grouped = (inputs.queries.float() * inputs.scaling).double().unflatten(0, (len(keys), -1))
    scores, moved = (grouped @ x.double()[:, None].mT for x in (keys, layer.key_errors))
    of_groups = None if sinks is None else sinks.unflatten(0, (len(keys), -1))
    weights = softmax(scores.masked_fill(~layer.causal, -math.inf), of_groups)
    common = (weights * moved).sum(-1, keepdim=True)
    variance = (weights * (moved - common).square()).sum(-1)  # [kv_heads, G, T]
    if sinks is not None:
        variance += (1 - weights.sum(-1)) * common[..., 0].square()
    return variance[..., _FIRST_QUERY:].mean((-2, -1)).sqrt()


def _rounding_error(config: EngineConfig, code: CacheCode) -> float:
    """Return the relative rms error of Gaussian keys in the code's body, without feedback."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 64, config.head_dim, generator=generator)
    plain = Conditioning(rotate=True, key_centre=None, key_exponent=-12, value_exponent=-12)
    errors = coding_errors(config, replace(code, feedback=False), "key", keys, plain)
    return (errors.square().mean() / keys.double().square().mean()).sqrt().item()
