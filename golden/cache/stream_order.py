"""The order in which the engine reads a layer's tokens: sinks, anchors, body, window.

Without a sliding window and without anchors this is the order of the tokens' arrival.

With a sliding window of W tokens the body is a ring of ``R = W - window`` slots, read from its
first slot on. A token that moves to the body takes the place of the token that has just left the
sliding window, so places hardly ever change: token t is in place ``(t - sinks) mod R`` behind the
sinks that are still visible, and before that, in the window, in place ``R + (t - R) mod window``.
Up to W tokens, both are place t.

With anchors, every token of the body is as many places later as there are anchors that left the
window after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtq_hw.contract.tiers import Tiers

__all__ = ["body_places", "same_places", "window_places"]


def body_places(tiers: Tiers, tokens: Tensor, context: int) -> Tensor:
    """Return the places of tokens in sinks and body, for a query in a context of `context` tokens.

    Parameters
    ----------
    tokens : int64 [n], indices of tokens in the context
    """
    if tiers.body_slots is None:
        return tokens
    hidden = tiers.spread(context).first_sink
    body = tiers.sinks - hidden + (tokens - tiers.sinks) % max(tiers.body_slots, 1)
    return torch.where(tokens < tiers.sinks, (tokens - hidden).clamp(min=0), body)


def window_places(tiers: Tiers, tokens: Tensor) -> Tensor:
    """Return the places of tokens in the window, int64 [n]."""
    if tiers.body_slots is None:
        return tokens
    ring = tiers.body_slots + (tokens - tiers.body_slots) % tiers.window
    return torch.where(tokens < tiers.body_slots, tokens, ring)


def same_places(
    tiers: Tiers, first: int, last: int, anchored: Tensor | None = None
) -> list[tuple[int, int]]:
    """Split contexts of `first` to `last` tokens where places in sinks and body change.

    Parameters
    ----------
    anchored : which tokens that left the window are anchors, bool [batch, kv_heads, n]; a new
        anchor changes places

    Returns
    -------
    (first, last) of each run of contexts with the same places
    """
    if tiers.sliding is None:
        left = tiers.sinks + tiers.window + 1  # tokens of the context when the first one left
        new = [] if anchored is None else (anchored.any(0).any(0).nonzero()[:, 0] + left).tolist()
        starts = [first, *(context for context in new if first < context <= last)]
        return list(zip(starts, [start - 1 for start in starts[1:]] + [last], strict=True))
    runs = [(first, first)]
    for context in range(first + 1, last + 1):
        start, end = runs[-1]
        if tiers.spread(context).first_sink == tiers.spread(end).first_sink:
            runs[-1] = start, context
        else:
            runs.append((context, context))
    return runs
