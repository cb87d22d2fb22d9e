"""The input of attention: a pass through a cache layer, the job, and the backend interface.

`TernaryCacheLayer.update` returns a `CachePass`. transformers hands this pass to the attention
function in place of keys and values, and the attention function makes an `AttentionJob` of it for a
backend. Passes and jobs are values: reading one changes nothing, and later updates of the cache
leave it as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from golden.cache.anchor_history import window_hits
from golden.cache.plane_store import PlaneView
from golden.cache.stream_order import same_places, window_places
from golden.cache.tiered_store import TieredView
from golden.causal import causal_mask
from golden.conditioning import Conditioning
from golden.engine import Attention, Places
from golden.learned_sinks import LearnedSinks, quantize_learned_sinks
from golden.planes import Planes
from golden.queries import Queries, quantize_queries
from golden.query_conditioner import query_conditioner
from golden.second_version import SecondVersion
from golden.value_exponents import WrittenExponents
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig

__all__ = ["AttentionBackend", "AttentionJob", "CachePass", "Revision"]

#: Second versions of keys and of values.
SecondVersions = tuple[SecondVersion[Planes], SecondVersion[Planes]]


class Revision:
    """Identifies the contents of a cache layer up to appended tokens.

    While a layer keeps its revision, tokens were only appended to it. A reader that copied the
    planes elsewhere then needs to copy only the tokens after those that were settled at the time
    of the copy. Every other change gives the layer a new revision, and so does copying the layer.
    Revisions are equal when they are the same object.
    """


@dataclass(frozen=True)
class CachePass:
    """The contents of a cache layer after an update, and the tokens of the update.

    Attributes
    ----------
    config, code, conditioning : the format of the stored vectors
    backend : computes the attention of this layer
    keys, values : the vectors that any new token sees: all stored ones, or in a layer with a
        sliding window the newest
    new_tokens : number of tokens of the update, T
    window : the windows of keys and values with all tokens of the update, before any token left;
        None for an update of one token, where every query sees what is stored, and for a code
        without a window
    vectors : keys and values of the update before any conditioning, 16-bit integers int64
        [batch, kv_heads, T, D]
    exponents : exponents of the value scales written so far
    settle : callback for the attention function, to be called once with the tokens that queries
        see, so that the cache knows which tokens are padding; see
        `golden.value_exponents.ExponentHistory.settle`
    revision : revision of the layer
    observe : callback for the attention function, to be called once with the hits that the queries
        of the update give (`golden.cache.anchor_history.window_hits`); returns the pass with the
        anchors that follow. None in a layer without places for anchors.
    hits : hits of the tokens in the window, int64 [batch, kv_heads, tokens]: those of all queries
        before the newest, and of all queries; None in a layer without places for anchors
    """

    config: EngineConfig
    code: CacheCode
    conditioning: Conditioning
    backend: AttentionBackend
    keys: TieredView
    values: TieredView
    new_tokens: int
    window: tuple[PlaneView, PlaneView] | None
    vectors: tuple[Tensor, Tensor]
    exponents: WrittenExponents
    settle: Callable[[Tensor | None], None]
    revision: Revision
    observe: Callable[[Tensor], CachePass] | None = None
    hits: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of the context, those that have left the sliding window included."""
        return self.keys.tokens

    @property
    def stored(self) -> int:
        """Number T of tokens in `keys` and `values`."""
        return self.keys.stored

    @property
    def settled(self) -> int:
        """Number of tokens, first in the engine's order, that stay as they are in later passes."""
        next_token_pushes_one_out = self.code.tiers.spread(self.tokens + 1).forgotten > 0
        # a new anchor moves the body's tokens
        moves = next_token_pushes_one_out or self.code.tiers.anchors > 0
        return 0 if moves else self.keys.settled

    def places(self, context: int) -> Places | None:
        """Return the tokens' places in the engine's order, for a query in a context of that length.

        None where tokens keep the order of their arrival. Second versions are those of `recent`.
        """
        tiers = self.code.tiers
        stored = self.keys.places(tiers, context)
        if stored is None:
            return None
        count = 0 if self.window is None else self.window[0].tokens
        token = torch.arange(self.tokens - count, self.tokens, device=stored.device)
        return Places(stored, window_places(tiers, token))

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.keys.body.data.shape[0]

    @property
    def kv_heads(self) -> int:
        """Number of KV heads."""
        return self.keys.body.data.shape[1]

    def value_exponent(self, visible: Tensor | None = None) -> Tensor:
        """Return the contract's `value_exponent` of each new token, int64 [batch, kv_heads, T].

        It is the largest exponent of any value scale written up to and including that token; how
        tokens were grouped into updates does not matter. Padding, which no query sees, does not
        count.

        Parameters
        ----------
        visible : bool [batch, 1, I, T]; all tokens when None
        """
        running = torch.from_numpy(self.exponents.running(visible)).to(self.keys.body.data.device)
        return running[..., running.shape[-1] - self.new_tokens :].long()

    def with_hits(self, queries: Queries) -> CachePass:
        """Return the pass with the anchors that its queries decide on.

        Parameters
        ----------
        queries : of the newest tokens, as the lanes take them
        """
        if self.observe is None:
            return self
        recent = self.keys.window if self.window is None else self.window[0]
        sinks, near = self.keys.sinks.planes().merged(), recent.planes().merged()
        tiers = self.code.tiers
        return self.observe(window_hits(self.config, queries, sinks, near, tiers, self.tokens))

    def recent(self, queries: int) -> SecondVersions | None:
        """Return the window as each of the last `queries` tokens saw it when it was appended.

        A query sees its own token and the tokens before it; the newest `window` of these are in the
        digits of the tier.

        Returns
        -------
        Keys and values in their second versions, with `seen` bool [queries, M]; None where all
        queries see what is stored now.
        """
        if self.window is None or not self.window[0].tokens:
            return None
        keys, values = (view.planes() for view in self.window)
        seen = causal_mask(queries, keys.tokens, self.code.tiers.window, keys.digits.device)
        start = self.stored - keys.tokens
        return SecondVersion(keys, start, seen), SecondVersion(values, start, seen)


@dataclass(frozen=True)
class AttentionJob:
    """The attention of one layer in one forward pass.

    layer_index : index of the layer in the model
    scaled_queries : float64 [batch, kv_heads, G, I, D], scaled as `Conditioning` does, not rotated
    cache : contents of the layer's cache, including the tokens of this pass
    visible : bool [batch, 1, I, T]; rows are prefixes of one set of tokens per sequence, in a layer
        with a sliding window the newest tokens of these prefixes; all tokens when None
    sink_logits : learned sinks of the layer, float [kv_heads, G], natural logarithms; None without
    """

    layer_index: int
    scaled_queries: Tensor
    cache: CachePass
    visible: Tensor | None
    sink_logits: Tensor | None = None

    @cached_property
    def real_queries(self) -> Tensor:
        """The conditioned, unrounded queries: scores are ``q.k / sqrt(D)``."""
        return self.cache.conditioning.rotated(self.scaled_queries)

    @cached_property
    def host_queries(self) -> Queries:
        """The queries as the host gives them to the hardware."""
        return quantize_queries(self.cache.config, self.scaled_queries)

    @cached_property
    def queries(self) -> Queries:
        """The queries as the lanes take them."""
        rotate = self.cache.conditioning.rotate
        return query_conditioner(self.cache.config, self.host_queries, rotate)

    @cached_property
    def learned_sinks(self) -> LearnedSinks | None:
        """The learned sinks [kv_heads, G] as a job gives them to the hardware."""
        if self.sink_logits is None:
            return None
        return quantize_learned_sinks(self.cache.config, self.sink_logits)

    @cached_property
    def recent(self) -> SecondVersions | None:
        """Keys and values that left the window in this pass, as its earlier queries see them."""
        return self.cache.recent(self.scaled_queries.shape[-2])

    @cached_property
    def value_exponent(self) -> Tensor:
        """The contract's `value_exponent` of every query, int64 [batch, kv_heads, I]."""
        exponents = self.cache.value_exponent(self.visible)
        return exponents[..., exponents.shape[-1] - self.scaled_queries.shape[-2] :]

    def pieces(self, most: int) -> list[tuple[slice, Places | None]]:
        """Split the queries into pieces of at most `most` with the same places of tokens."""
        tokens, count = self.cache.tokens, self.scaled_queries.shape[-2]
        before = tokens - count
        pieces = []
        tiers, in_tier = self.cache.code.tiers, self.cache.keys.in_tier
        for first, last in same_places(tiers, before + 1, tokens, in_tier):
            places = self.cache.places(first)
            for start in range(first - before - 1, last - before, most):
                pieces.append((slice(start, min(start + most, last - before)), places))
        return pieces

    @property
    def is_decode_step(self) -> bool:
        """Whether the job is one query of one sequence over all tokens: a job for the hardware."""
        batch, _, _, queries, _ = self.scaled_queries.shape
        return batch == 1 and queries == 1 and self.visible is None


class AttentionBackend(Protocol):
    """Computes attention jobs."""

    def attend(self, job: AttentionJob) -> Attention | Tensor:
        """Return the outputs of a job, [batch, kv_heads, G, I, D]: integers or float64.

        Outputs are rotated back and in the unit of the value integers.
        """
        ...
