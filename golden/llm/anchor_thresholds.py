"""Thresholds of anchor tokens: how many hits make a token an anchor, from a calibration's text.

docs/contract.md ("Anchor tokens") defines hits. A KV head's threshold is the smallest number of
hits that at most `ANCHOR_SHARE` of the text's tokens have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from golden.anchors import MOST_HITS
from golden.cache.anchor_history import REFERENCE_WINDOW, hits_of_scores, thresholds_of_window
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.tiers import ANCHOR_SHARE, Tiers

__all__ = ["HitCounts", "anchors_of_text"]

# Scores have the fraction bits of the presets.
_CONFIG = load_config("smollm2")
#: Tiers of the codes for which thresholds are measured.
_TIERS = Tiers(sinks=4, window=REFERENCE_WINDOW)


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
        # tokens whose window is complete, and that no sink keeps
        hits = _hits(queries, keys, scaling, _TIERS)
        hits = hits[:, _TIERS.sinks : keys.shape[-2] - REFERENCE_WINDOW].cpu()
        self._tokens.scatter_add_(-1, hits, torch.ones_like(hits))

    def thresholds(self) -> Tensor:
        """Return the threshold of each KV head, int64 [kv_heads], 1..4095."""
        total = self._tokens.sum(-1, keepdim=True)
        at_least = self._tokens.flip(-1).cumsum(-1).flip(-1)  # tokens with so many hits, or more
        enough = at_least <= ANCHOR_SHARE * total
        smallest = torch.where(enough.any(-1), enough.long().argmax(-1), MOST_HITS)
        return smallest.clamp(min=1)


def anchors_of_text(
    queries: Tensor, keys: Tensor, scaling: float, thresholds: Tensor, tiers: Tiers
) -> Tensor:
    """Return which tokens of a text become anchors, bool [kv_heads, T]; see `HitCounts.add`.

    Scores are those of the unquantized model. Tokens that are in the window at the end count as if
    they left it.

    Parameters
    ----------
    thresholds : int64 [kv_heads], of the calibration
    tiers : of the layer, with places for anchors
    """
    least = thresholds_of_window(thresholds, tiers.window).to(keys.device)
    wanted = _hits(queries, keys, scaling, tiers) >= least[:, None]
    wanted[:, : tiers.sinks] = False
    return wanted & (wanted.cumsum(-1) <= tiers.anchors)


def _hits(queries: Tensor, keys: Tensor, scaling: float, tiers: Tiers) -> Tensor:
    """Return the hits of the tokens of a text, int64 [kv_heads, T]."""
    tokens, window = keys.shape[-2], tiers.window
    unit = (1 << _CONFIG.score_fraction_bits) / math.log(2)
    scores = (queries @ keys[:, None].mT * (scaling * unit)).round().long()
    token = torch.arange(tokens, device=keys.device)
    in_sinks = token[: tiers.sinks] <= token[:, None]
    seen = token[:, None] - torch.arange(window - 1, -1, -1, device=keys.device)
    of_window = scores.gather(-1, seen.clamp(min=0).expand(*scores.shape[:2], -1, -1))
    there = seen >= tiers.sinks
    given = hits_of_scores(_CONFIG, scores[..., : tiers.sinks], in_sinks, of_window, there).sum(1)
    hits = torch.zeros(len(keys), tokens, dtype=torch.long, device=keys.device)
    for place in range(window - 1):  # the last place is the query's own
        hits.index_add_(1, seen[:, place].clamp(min=0), given[..., place])
    return hits.clamp(max=MOST_HITS)
