"""The causal mask of a layer, with or without a sliding window."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["causal_mask"]


def causal_mask(
    queries: int,
    tokens: int,
    window: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return which of the newest `tokens` tokens each of the newest queries sees, bool [I, T].

    Query i sees its own token and the tokens before it; with a sliding window of W tokens it sees
    the newest W of these.
    """
    seen = torch.ones(queries, tokens, dtype=torch.bool, device=device).tril(tokens - queries)
    return seen if window is None else seen.triu(tokens - queries - window + 1)
