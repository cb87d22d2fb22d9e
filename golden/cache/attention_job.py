"""What attention works on: a pass through a cache layer, a job, and who computes it.

`TernaryCacheLayer.update` returns a `CachePass`, transformers hands it on to the attention function
in the place of keys and values, and that makes an `AttentionJob` of it for a backend. All of them
are values: reading them changes nothing, and what they show does not change when the cache goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from golden.cache.plane_store import PlaneView
from golden.cache.tiered_store import TieredView
from golden.conditioning import Conditioning
from golden.engine import Attention
from golden.planes import Planes
from golden.queries import Queries, quantize_queries
from golden.query_conditioner import query_conditioner
from golden.second_version import SecondVersion
from golden.value_exponents import WrittenExponents
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig

__all__ = ["AttentionBackend", "AttentionJob", "CachePass", "Revision"]

#: Of keys and of values.
SecondVersions = tuple[SecondVersion[Planes], SecondVersion[Planes]]


class Revision:
    """Names what a cache layer holds: the same one means that tokens were appended, and no more.

    Who keeps a copy of the planes elsewhere needs only what came after the tokens that were settled
    when it was made, as long as the layer has this revision. Anything but appending, and copying
    the layer, gives another one. Revisions are equal when they are the same object.
    """


@dataclass(frozen=True)
class CachePass:
    """What a cache layer holds after an update, and what that brought.

    Attributes
    ----------
    config, code, conditioning : the format of what is stored
    backend : who computes the attention of this layer
    keys, values : everything stored
    new_tokens : tokens of the update, T
    window : of several tokens, the windows of keys and values with them, before any left it; None
        where every query sees what is stored, or the code has no window
    vectors : key and value of the one token of the update as they came, 16-bit integers int64
        [batch, kv_heads, 1, D]: what hardware gets that stores them on its own. None for several
    exponents : what value scales have been written
    settle : to be called once by the attention function, with the tokens that queries see, so that
        the cache knows what is padding; see `golden.value_exponents.ExponentHistory.settle`
    revision : of the layer
    """

    config: EngineConfig
    code: CacheCode
    conditioning: Conditioning
    backend: AttentionBackend
    keys: TieredView
    values: TieredView
    new_tokens: int
    window: tuple[PlaneView, PlaneView] | None
    vectors: tuple[Tensor, Tensor] | None
    exponents: WrittenExponents
    settle: Callable[[Tensor | None], None]
    revision: Revision

    @property
    def tokens(self) -> int:
        """Stored tokens."""
        return self.keys.tokens

    @property
    def settled(self) -> int:
        """Tokens whose planes do not change when more are appended."""
        return self.keys.settled

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.keys.body.data.shape[0]

    @property
    def kv_heads(self) -> int:
        """KV heads."""
        return self.keys.body.data.shape[1]

    def value_exponent(self, visible: Tensor | None = None) -> Tensor:
        """The contract's `value_exponent` of each new token, int64 [batch, kv_heads, T].

        The largest exponent of any value scale written until it had come, in whatever pieces tokens
        came. Padding, which no query sees, does not count.

        Parameters
        ----------
        visible : bool [batch, 1, I, tokens]; all tokens when None
        """
        running = torch.from_numpy(self.exponents.running(visible)).to(self.keys.body.data.device)
        return running[..., running.shape[-1] - self.new_tokens :].long()

    def recent(self, queries: int) -> SecondVersions | None:
        """Return the window as each of the last `queries` tokens saw it when it was appended.

        A query sees itself and the tokens before it, the newest `window` of them in the tier. None
        where all queries see what is stored now.

        Returns
        -------
        Keys and values in their second versions, with `seen` bool [queries, M].
        """
        if self.window is None:
            return None
        keys, values = (view.planes() for view in self.window)
        position = torch.arange(self.tokens - queries, self.tokens)[:, None]
        token = torch.arange(self.tokens - keys.tokens, self.tokens)
        seen = (token > position - self.code.tiers.window) & (token <= position)
        start, seen = self.tokens - keys.tokens, seen.to(keys.digits.device)
        return SecondVersion(keys, start, seen), SecondVersion(values, start, seen)


@dataclass(frozen=True)
class AttentionJob:
    """The attention of one layer in one forward pass.

    layer_index : the layer
    scaled_queries : float64 [batch, kv_heads, G, I, D], scaled as `Conditioning` does, not rotated
    cache : what the layer's cache holds, with the tokens of this pass
    visible : bool [batch, 1, I, T], prefixes of one set of tokens a sequence; all tokens when None
    """

    layer_index: int
    scaled_queries: Tensor
    cache: CachePass
    visible: Tensor | None

    @cached_property
    def real_queries(self) -> Tensor:
        """The queries conditioned, unrounded: scores are ``q.k / sqrt(D)``."""
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
    def recent(self) -> SecondVersions | None:
        """Keys and values that left the window in this pass, as earlier queries of it see them."""
        return self.cache.recent(self.scaled_queries.shape[-2])

    @cached_property
    def value_exponent(self) -> Tensor:
        """The contract's `value_exponent` of every query, int64 [batch, kv_heads, I]."""
        exponents = self.cache.value_exponent(self.visible)
        return exponents[..., exponents.shape[-1] - self.scaled_queries.shape[-2] :]

    @property
    def is_decode_step(self) -> bool:
        """One new token of one sequence, which attends to all tokens: a job for the hardware."""
        batch, _, _, queries, _ = self.scaled_queries.shape
        return batch == 1 and queries == 1 and self.visible is None


class AttentionBackend(Protocol):
    """Computes jobs.

    The result is rotated back, in the unit of the value integers, [batch, kv_heads, G, I, D].
    """

    def attend(self, job: AttentionJob) -> Attention | Tensor:
        """Integer outputs with their exponents, or float64 outputs."""
        ...
