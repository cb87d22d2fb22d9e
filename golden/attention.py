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

from golden.backends import AttentionJob, to_float
from golden.cache import TernaryCacheLayer
from kvtq_hw.errors import UserError

__all__ = ["ATTENTION", "ternary_attention"]

ATTENTION = "kvtq_ternary"

# Arguments by which some models change the attention itself. Ignoring one would be silently wrong.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "sliding_window")


def ternary_attention(
    module: nn.Module,
    query: Tensor,
    key: TernaryCacheLayer,
    value: TernaryCacheLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [batch, heads, I, D] over everything in the cache layer.

    Parameters
    ----------
    key, value : the cache layer, as its `update` returned it
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
    if not isinstance(key, TernaryCacheLayer):
        raise TypeError(f"key is a {type(key).__name__}, not a layer of a TernaryCache")
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: {kwargs[name]!r} is not supported; must be None")
    if dropout:
        raise ValueError(f"dropout: {dropout} is not supported; must be 0")
    config = key.config
    kv_heads = query.shape[1] // config.query_group
    grouped = query.unflatten(1, (kv_heads, config.query_group))
    queries = key.conditioning.scale_queries(grouped)
    factor = 1.0 if scaling is None else scaling * math.sqrt(config.head_dim)
    if factor != 1.0:
        queries = queries * factor
    visible = _visible(attention_mask, query.shape[-2], key.get_seq_length(), query.device)
    if key.code.sinks and visible is not None and not visible.any(-2).all():
        raise UserError(
            f"code: {str(key.code)!r} has sinks, which a batch with padded sequences cannot have; "
            "allowed are codes with sinks=0"
        )
    recent = key.take_recent(query.shape[-2])
    layer = cast(int, module.layer_idx)
    job = AttentionJob(layer, queries, key, visible, recent, key.take_vectors())
    outputs = key.conditioning.real_outputs(to_float(key.backend.attend(job)))
    return outputs.flatten(1, 2).transpose(1, 2).contiguous().to(query.dtype), None


def _visible(mask: Tensor | None, queries: int, tokens: int, device: torch.device) -> Tensor | None:
    """The tokens each query sees, bool [batch, 1, I, T]; None where every query sees all."""
    if mask is None:
        if queries == 1:
            return None
        causal = torch.ones(queries, tokens, dtype=torch.bool, device=device)
        return causal.tril(tokens - queries)[None, None]
    if mask.dtype != torch.bool or mask.shape[1] != 1:
        raise ValueError(
            f"attention_mask: {mask.dtype} {tuple(mask.shape)} is not supported; must be bool with "
            "one head"
        )
    used = mask.any(-2, keepdim=True)
    rank = used.cumsum(-1)
    if not torch.equal(mask, used & (rank <= mask.sum(-1, keepdim=True))):
        raise ValueError("attention_mask: rows are not prefixes of one set of tokens")
    return mask


AttentionInterface.register(ATTENTION, ternary_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
