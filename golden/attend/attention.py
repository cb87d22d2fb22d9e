"""The attention function that transformers calls, over a `TernaryCache`.

Importing this module registers it under the name `ATTENTION`, together with the mask function
without which a prefill would not be causal. A model uses it after
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
from kvtq_hw.contract.errors import UserError

__all__ = ["ATTENTION", "ternary_attention"]

ATTENTION = "kvtq_ternary"

# Arguments by which some models change the attention itself. Ignoring one would be silently wrong.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")


@torch.compiler.disable
def ternary_attention(
    module: nn.Module,
    query: Tensor,
    key: CachePass,
    value: CachePass,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [batch, heads, I, D] over everything in the cache layer.

    A compiled model leaves its graph for it: the integers are not worth tracing.

    Parameters
    ----------
    key, value : the pass through the cache layer, as its `update` returned it
    attention_mask : bool [batch, 1, I, T], true where a query sees a token; None for causal
        attention of the newest I tokens
    scaling : factor on the scores, 1 / sqrt(D) when None

    Returns
    -------
    The outputs [batch, I, heads, D] in the type of the query, and no weights.

    Raises
    ------
    TypeError
        When the model did not run with a `TernaryCache`.
    ValueError
        For attention variants and masks that the engine does not compute.
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
    visible = _visible(attention_mask, query.shape[-2], key.tokens, query.device)
    if key.code.tiers.sinks and visible is not None and not visible.any(-2).all():
        raise UserError(
            f"code: {str(key.code)!r} has sinks, which a batch with padded sequences cannot have; "
            "allowed are codes with sinks=0"
        )
    key.settle(visible)
    job = AttentionJob(cast(int, module.layer_idx), queries, key, visible)
    outputs = key.conditioning.real_outputs(to_float(key.backend.attend(job)))
    return outputs.flatten(1, 2).transpose(1, 2).contiguous().to(query.dtype), None


def _check_queries(query: Tensor, stored: CachePass) -> None:
    """Refuse queries that are not of this pass, or of another model."""
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


def _visible(mask: Tensor | None, queries: int, tokens: int, device: torch.device) -> Tensor | None:
    """The tokens each query sees, bool [batch, 1, I, T]; None where every query sees all."""
    if mask is None:
        if queries == 1:
            return None
        causal = torch.ones(queries, tokens, dtype=torch.bool, device=device)
        return causal.tril(tokens - queries)[None, None]
    if mask.dtype != torch.bool or mask.shape[1:] != (1, queries, tokens):
        raise ValueError(
            f"attention_mask: {mask.dtype} {tuple(mask.shape)} is not supported; must be bool "
            f"[batch, 1, {queries}, {tokens}]"
        )
    used = mask.any(-2, keepdim=True)
    rank = used.cumsum(-1)
    if not torch.equal(mask, used & (rank <= mask.sum(-1, keepdim=True))):
        raise ValueError("attention_mask: rows are not prefixes of one set of tokens")
    return mask


AttentionInterface.register(ATTENTION, ternary_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
