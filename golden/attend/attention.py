"""The attention function over a `TernaryCache` that transformers calls.

Importing this module registers the function under the name `ATTENTION`, together with a mask
function; without the mask function a prefill would not be causal. A model uses both after
``model.set_attn_implementation(ATTENTION)``.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from golden.attend.backends import to_float
from golden.cache.attention_job import AttentionJob, CachePass
from golden.causal import causal_mask
from golden.queries import quantize_queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.errors import UserError

__all__ = ["ATTENTION", "ternary_attention"]

ATTENTION = "kvtq_ternary"

# Arguments by which some models change the attention itself. Ignoring such an argument would give
# wrong outputs silently.
_UNSUPPORTED = ("softcap", "position_bias")


@torch.compiler.disable
def ternary_attention(
    module: nn.Module,
    query: Tensor,
    key: CachePass,
    value: CachePass,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of `query` [batch, heads, I, D] over all tokens of a cache layer.

    A compiled model leaves its graph for this function: integer operations are not worth tracing.

    Parameters
    ----------
    key, value : the pass that the cache layer's `update` returned
    attention_mask : bool [batch, 1, I, T], true where a query sees a token; None for causal
        attention of the newest I tokens, in a layer with a sliding window to its tokens
    scaling : factor on the scores, 1 / sqrt(D) when None
    s_aux : learned sinks [heads]: a logit of each query head in the denominator of its softmax

    Returns
    -------
    The outputs [batch, I, heads, D] in the dtype of the query, and None for the weights.

    Raises
    ------
    TypeError
        When the model did not run with a `TernaryCache`.
    ValueError
        When the engine does not compute this attention variant or mask.
    """
    if not isinstance(key, CachePass):
        raise TypeError(
            f"the model's cache gave the attention a {type(key).__name__}; {ATTENTION!r} needs a "
            "TernaryCache: pass past_key_values=golden.llm.decoding.make_cache(...)"
        )
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: {kwargs[name]!r} is not supported; must be None")
    if dropout:
        raise ValueError(f"dropout: {dropout} is not supported; must be 0")
    config = key.config
    _check_queries(query, key)
    grouped = query.unflatten(1, (key.kv_heads, config.query_group))
    queries = key.conditioning.scale_queries(grouped)
    factor = 1.0 if scaling is None else scaling * math.sqrt(config.head_dim)
    if factor != 1.0:
        queries = queries * factor
    _check_window(kwargs.get("sliding_window"), key)
    visible = _visible(attention_mask, query.shape[-2], key)
    if visible is not None and not visible.any(-2).all():
        for part in ("sinks", "anchors"):
            if getattr(key.code.tiers, part):
                raise UserError(
                    f"code: {str(key.code)!r} has {part}, which a batch with padded sequences "
                    f"cannot have; allowed are codes with {part}=0"
                )
    if key.code.tiers.anchors:
        lanes = query_conditioner(
            config, quantize_queries(config, queries), key.conditioning.rotate
        )
        key = key.with_hits(lanes)
    key.settle(visible)
    sinks = None if s_aux is None else s_aux.detach().unflatten(0, (key.kv_heads, -1))
    job = AttentionJob(cast(int, module.layer_idx), queries, key, visible, sinks)
    outputs = key.conditioning.real_outputs(to_float(key.backend.attend(job)))
    return outputs.flatten(1, 2).transpose(1, 2).contiguous().to(query.dtype), None


def _check_queries(query: Tensor, stored: CachePass) -> None:
    """Raise `ValueError` for queries that do not belong to this pass or to this model."""
    config = stored.config
    expected = stored.batch, stored.kv_heads * config.query_group, config.head_dim
    if (query.shape[0], query.shape[1], query.shape[3]) != expected:
        raise ValueError(
            f"queries have batch, heads and head dimension {(*query.shape[:2], query.shape[3])}; "
            f"the cache and configuration {config.name!r} need {expected}"
        )
    if query.shape[2] > stored.new_tokens:
        raise ValueError(
            f"queries are of {query.shape[2]} tokens; at most the {stored.new_tokens} that were "
            "appended last can attend"
        )


def _check_window(window: int | None, stored: CachePass) -> None:
    """Raise `ValueError` if the model's layer has another sliding window than its cache."""
    kept = stored.code.tiers.sliding
    if window is not None and window != kept:
        raise ValueError(
            f"sliding_window: {window} is not that of the cache, {kept}; give the cache the "
            "model's windows"
        )


def _visible(mask: Tensor | None, queries: int, stored: CachePass) -> Tensor | None:
    """Return which tokens each query sees, bool [batch, 1, I, T]; None where all queries see all.

    Raises
    ------
    ValueError
        When the engine does not compute this mask.
    """
    tokens, window = stored.stored, stored.code.tiers.sliding
    device = stored.keys.body.data.device
    if mask is None:
        if queries == 1:
            return None
        return causal_mask(queries, tokens, window, device)[None, None]
    if mask.dtype != torch.bool or mask.shape[1:] != (1, queries, tokens):
        raise ValueError(
            f"attention_mask: {mask.dtype} {tuple(mask.shape)} is not supported; must be bool "
            f"[batch, 1, {queries}, {tokens}]"
        )
    used = mask.any(-2, keepdim=True)
    if window is not None:
        if not torch.equal(mask, used & causal_mask(queries, tokens, window, device)):
            raise ValueError(
                f"attention_mask: rows are not the newest {window} tokens up to their query, "
                "padding excepted"
            )
        return None if queries == 1 and bool(mask.all()) else mask
    rank = used.cumsum(-1)
    if not torch.equal(mask, used & (rank <= mask.sum(-1, keepdim=True))):
        raise ValueError("attention_mask: rows are not prefixes of one set of tokens")
    return mask


AttentionInterface.register(ATTENTION, ternary_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
