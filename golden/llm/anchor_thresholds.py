"""Thresholds of anchor tokens: how many hits make a token an anchor, from a calibration's text.

docs/contract.md ("Anchor tokens") defines hits. A KV head's threshold is the smallest number of
hits that at most `ANCHOR_SHARE` of the text's tokens have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from golden.cache.anchor_history import HIT_MARGIN, MOST_HITS, REFERENCE_WINDOW
from golden.causal import causal_mask
from kvtq_hw.contract.tiers import ANCHOR_SHARE

__all__ = ["HitCounts"]

# Tiers of the codes for which thresholds are measured.
_SINKS = 4


class HitCounts:
    """Counts how many tokens of a layer get how many hits, over the pieces of a text.

    Parameters
    ----------
    kv_heads : number of KV heads
    """

    def __init__(self, kv_heads: int) -> None:
        self._tokens = torch.zeros(kv_heads, MOST_HITS + 1, dtype=torch.long)

    def add(self, queries: Tensor, keys: Tensor, scaling: float) -> None:
        """Count the tokens of a piece.

        Parameters
        ----------
        queries : float [kv_heads, G, T, D]
        keys : float [kv_heads, T, D]
        scaling : factor on the scores
        """
        tokens = keys.shape[-2]
        scores = queries @ keys[:, None].mT * (scaling / math.log(2))
        window = causal_mask(tokens, tokens, REFERENCE_WINDOW, keys.device)
        causal = causal_mask(tokens, tokens, None, keys.device)
        first = torch.arange(tokens, device=keys.device) < _SINKS
        scores = scores.masked_fill(~(window | causal & first), -math.inf)
        hit = scores >= scores.cummax(-1).values - HIT_MARGIN
        hit &= window & ~torch.eye(tokens, dtype=torch.bool, device=keys.device)
        # tokens whose window is complete, and that no sink keeps
        hits = hit.sum((1, 2))[:, _SINKS : tokens - REFERENCE_WINDOW].clamp(max=MOST_HITS).cpu()
        self._tokens.scatter_add_(-1, hits, torch.ones_like(hits))

    def thresholds(self) -> Tensor:
        """Return the threshold of each KV head, int64 [kv_heads], 1..255."""
        total = self._tokens.sum(-1, keepdim=True)
        at_least = self._tokens.flip(-1).cumsum(-1).flip(-1)  # tokens with so many hits, or more
        enough = at_least <= ANCHOR_SHARE * total
        smallest = torch.where(enough.any(-1), enough.long().argmax(-1), MOST_HITS)
        return smallest.clamp(min=1)
