"""The model's own attention in floating point: PyTorch's, with the learned sinks of a layer.

Importing this module registers the function under the name `PLAIN_ATTENTION`. Without learned sinks
it computes what transformers' "sdpa" computes, to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from golden.causal import causal_mask

__all__ = ["PLAIN_ATTENTION", "plain_attention"]

PLAIN_ATTENTION = "kvtq_plain"


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute the attention of `query` [batch, heads, I, D] over all tokens: [batch, I, heads, D].

    Parameters
    ----------
    s_aux : learned sinks [heads]
    """
    if s_aux is not None:
        # one more token, whose score is the learned sink and whose value is zero
        attention_mask = _biases(query, key.shape[-2], attention_mask, s_aux)
        key, value = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (key, value))
    found: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, **kwargs
    )
    return found


def _biases(query: Tensor, tokens: int, mask: Tensor | None, s_aux: Tensor) -> Tensor:
    """Return what is added to the scores of T tokens and of a learned sink behind them.

    Parameters
    ----------
    mask : bool [batch, 1, I, T], or None for causal attention of the newest I tokens

    Returns
    -------
    [batch, heads, I, T + 1]
    """
    batch, heads, queries, _ = query.shape
    if mask is None:
        mask = causal_mask(queries, tokens, device=query.device)
    hidden = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
    sinks = s_aux.to(query.dtype)[:, None, None].expand(batch, heads, queries, 1)
    return torch.cat([hidden.expand(batch, heads, queries, tokens), sinks], -1)


AttentionInterface.register(PLAIN_ATTENTION, plain_attention)
AttentionMaskInterface.register(PLAIN_ATTENTION, sdpa_mask)
