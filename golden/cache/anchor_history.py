"""Anchor tokens of a cache layer: hits of the tokens in the window, and the decisions.

docs/contract.md ("Anchor tokens") defines both. A query gives hits to the tokens of its window,
which depend on nothing but scores in the tier's digits. So the hits of many queries are computed at
once, and a prefill makes the same decisions as token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from golden.anchors import HIT_STEPS, MOST_HITS, sum_steps
from golden.key_lanes import key_lanes
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.queries import Queries
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.tiers import Tiers

__all__ = [
    "REFERENCE_WINDOW",
    "AnchorHistory",
    "hits_of_scores",
    "thresholds_of_window",
    "window_hits",
]

#: Window for which calibration measures thresholds.
REFERENCE_WINDOW = 32

# Reference of a query that has seen no score: its distance from any score has no step.
_NOTHING = -(1 << 40)
# Queries whose scores are computed at a time.
_QUERIES = 256


def thresholds_of_window(thresholds: Tensor, window: int) -> Tensor:
    """Return the thresholds of calibration in proportion to another window, int64 [kv_heads].

    A token gets hits from ``window - 1`` queries. The result is in 1..4095.
    """
    of_reference = REFERENCE_WINDOW - 1
    return -(-thresholds * (window - 1) // of_reference).clamp(-MOST_HITS, -1)


def window_hits(
    config: EngineConfig, queries: Queries, sinks: Planes, recent: Planes, tiers: Tiers, tokens: int
) -> Tensor:
    """Compute the hits that each query gives to the tokens before it.

    Parameters
    ----------
    queries : values [batch, kv_heads, G, I, D], of the newest I tokens of the context
    sinks, recent : keys of the first and of the newest tokens in the tier's digits; `recent` has
        the windows of all queries, as far as these tokens are stored
    tokens : number of tokens of the context

    Returns
    -------
    int16 [batch, kv_heads, I, window - 1]: hits that a query gives to the token 1, 2, ... before it
    """
    count = queries.values.shape[-2]
    pieces = []
    for start in range(0, count, _QUERIES):
        rows = slice(start, min(start + _QUERIES, count))
        piece = Queries(queries.values[..., rows, :], queries.exponent[..., rows])
        first = tokens - count + start  # token of the piece's first query
        # the windows of the piece's queries
        low = max(first - tiers.window + 1 - (tokens - recent.tokens), 0)
        high = recent.tokens - (count - rows.stop)
        span = slice(low, high)
        near = recent.map_tokens(partial(_part_of, span))
        pieces.append(_hits(config, piece, sinks, near, tiers, first))
    return torch.cat(pieces, -2)


def _part_of(span: slice, x: Tensor, axis: int) -> Tensor:
    """Return some of the tokens along an axis."""
    return x.narrow(axis, span.start, span.stop - span.start)


def _hits(
    config: EngineConfig, queries: Queries, sinks: Planes, near: Planes, tiers: Tiers, first: int
) -> Tensor:
    """Return the hits of queries of the tokens from `first` on; `near` ends with the last one."""
    device, window = near.digits.device, tiers.window
    count = queries.values.shape[-2]
    if near.tokens == 0:  # there are only sinks yet
        shape = *near.digits.shape[:2], count, window - 1
        return torch.zeros(shape, dtype=torch.int16, device=device)

    def scores(keys: Planes) -> Tensor:
        return plane_scaler(config, key_lanes(keys.digits, queries.values), keys, queries.exponent)[
            0
        ]

    token = torch.arange(first, first + count, device=device)
    in_sinks = torch.arange(sinks.tokens, device=device) <= token[:, None]  # [I, sinks]
    # the window of each query, in the order of the tokens: [I, window]
    seen = token[:, None] - torch.arange(window - 1, -1, -1, device=device)
    place = seen - (first + count - near.tokens)
    there = (seen >= tiers.sinks) & (place >= 0)
    of_window = scores(near).gather(-1, place.clamp(min=0).expand(*queries.exponent.shape, window))
    hits = hits_of_scores(config, scores(sinks), in_sinks, of_window, there)
    return hits.sum(2).to(torch.int16)[..., :-1].flip(-1)


def hits_of_scores(
    config: EngineConfig, of_sinks: Tensor, in_sinks: Tensor, of_window: Tensor, there: Tensor
) -> Tensor:
    """Return the hits that queries give to the tokens of their windows, int64 [..., I, window].

    Parameters
    ----------
    of_sinks, of_window : scores int64 [..., I, sinks] and [..., I, window], in the order of the
        stream
    in_sinks, there : bool [I, sinks] and [I, window], which of them are scores of tokens
    """
    device, fraction_bits = of_window.device, config.score_fraction_bits
    steps = torch.tensor(sum_steps(config), device=device)
    gains = torch.tensor([*HIT_STEPS, 0], device=device)
    reference = torch.full(of_window.shape[:-1], _NOTHING, device=device)
    hits = []
    for all_scores, known in ((of_sinks, in_sinks), (of_window, there)):
        for place in range(all_scores.shape[-1]):
            score, counts = all_scores[..., place], known[:, place]
            apart = 2 * (score - reference).abs() >> fraction_bits
            total = torch.maximum(score, reference) + steps[apart.clamp(max=len(steps) - 1)]
            reference = torch.where(counts, total, reference)
            if all_scores is of_window:
                below = 2 * (reference - score) >> fraction_bits
                hits.append(gains[below.clamp(0, len(gains) - 1)] * counts)
    return torch.stack(hits, -1)


class AnchorHistory:
    """The hits that the newest queries of a layer gave, from which the layer decides on anchors.

    Hits are kept by query, for as many queries as decisions and a removal of the newest update's
    tokens need.

    Parameters
    ----------
    tiers : the layer's tiers, with places for anchors
    thresholds : int64 [kv_heads], of the calibration
    batch, device : of the stored vectors
    """

    def __init__(self, tiers: Tiers, thresholds: Tensor, batch: int, device: torch.device) -> None:
        self._tiers = tiers
        self._thresholds = thresholds_of_window(thresholds, tiers.window).to(device)
        self.tokens = 0
        # [batch, kv_heads, queries, window - 1], of the newest queries
        shape = batch, len(thresholds), 0, tiers.window - 1
        self._rows = torch.zeros(shape, dtype=torch.int16, device=device)

    def append(self, tokens: int) -> None:
        """Add new tokens, whose queries have not given hits yet."""
        kept = min(self._rows.shape[-2], self._tiers.window - 1)
        rows = self._rows[..., self._rows.shape[-2] - kept :, :]
        self._rows = torch.nn.functional.pad(rows, (0, 0, 0, tokens))
        self.tokens += tokens

    def observe(self, hits: Tensor) -> None:
        """Record the hits of the newest queries; see `window_hits`."""
        rows = self._rows.clone()
        rows[..., rows.shape[-2] - hits.shape[-2] :, :] = hits
        self._rows = rows

    def hits(self, first: int, last: int, queries: int | None = None) -> Tensor:
        """Count the hits of the tokens from `first` to before `last`, int64 [batch, kv_heads, n].

        Parameters
        ----------
        queries : number of queries, from the context's first on, whose hits count; all when None
        """
        device, known = self._rows.device, self._rows.shape[-2]
        behind = torch.arange(1, self._tiers.window, device=device)
        query = torch.arange(first, last, device=device)[:, None] + behind
        row = query - (self.tokens - known)
        there = (row >= 0) & (query < (self.tokens if queries is None else queries))
        given = self._rows[..., row.clamp(0, max(known - 1, 0)), behind - 1] if known else 0
        total = (given * there).sum(-1, dtype=torch.long)
        return total.clamp(max=MOST_HITS)

    def decide(self, anchored: Tensor, first: int, last: int) -> Tensor:
        """Return which tokens from `first` to before `last`, which leave the window, are anchors.

        Parameters
        ----------
        anchored : bool [batch, kv_heads, n], the earlier tokens that left the window

        Returns
        -------
        bool [batch, kv_heads, last - first]
        """
        wanted = self.hits(first, last) >= self._thresholds[:, None]
        places = self._tiers.anchors - anchored.sum(-1, keepdim=True)
        return wanted & (wanted.cumsum(-1) <= places)

    def crop(self, tokens: int) -> None:
        """Remove all but the first `tokens` tokens."""
        removed = self.tokens - tokens
        self._rows = self._rows[..., : max(self._rows.shape[-2] - removed, 0), :]
        self.tokens = tokens

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to the hits."""
        self._rows = function(self._rows)
