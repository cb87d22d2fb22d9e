"""A KV cache for transformers that holds packed ternary planes and nothing else.

A model gets a `TernaryCache` as ``past_key_values``. The cache's layers return a `CachePass`, and
the attention function of `golden.attend.attention` reads planes from it instead of keys and
values::

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from golden.attend.attention import ATTENTION
    >>> from golden.attend.backends import GoldenBackend
    >>> from kvtq_hw.contract.config import load_config
    >>> sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    >>> heads = dict(num_attention_heads=4, num_key_value_heads=2)
    >>> config = LlamaConfig(**sizes, **heads, eos_token_id=None)
    >>> model = LlamaForCausalLM(config).eval()
    >>> model.set_attn_implementation(ATTENTION)
    >>> layers = [Conditioning(rotate=True, key_centre=None, key_exponent=-12, value_exponent=-12)]
    >>> code = CacheCode.parse("balanced:3/2")
    >>> cache = TernaryCache(load_config("tiny"), code, layers, GoldenBackend())
    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> model.generate(tokens, past_key_values=cache, max_new_tokens=4).shape
    torch.Size([1, 7])
    >>> cache.get_seq_length(), cache.bits_per_element()
    (6, 6.0)

Centres, exponents and feedback of a real model come from `golden.llm.calibration`.

Storage is append-only. A token is quantized when it arrives. Where the code has a window of recent
tokens in the digits of the tier, a token that leaves the window is quantized once more, from these
digits to the body's. A layer with a sliding window keeps the tokens in its sliding window only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.cache.anchor_history import AnchorHistory
from golden.cache.attention_job import AttentionBackend, CachePass, Revision
from golden.cache.layer import StoredCache, StoredLayer
from golden.cache.tiered_store import TieredStore
from golden.conditioning import Conditioning
from golden.value_exponents import ExponentHistory
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError

__all__ = ["TernaryCache", "TernaryCacheLayer"]


class TernaryCacheLayer(StoredLayer[TieredStore]):
    """One layer of a `TernaryCache`: conditions, quantizes, packs and appends.

    Parameters
    ----------
    config, code : the format of the stored vectors
    conditioning : conditioning of keys and values before they are quantized
    backend : computes the attention of this layer; copies of the layer share it

    Attributes
    ----------
    saturated : number of elements so far that did not fit the 16 bits that calibration chose
    revision : identifies the stored contents; see `golden.cache.attention_job.Revision`
    """

    is_croppable = True

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        conditioning: Conditioning,
        backend: AttentionBackend,
    ) -> None:
        super().__init__()
        self.config = config
        self.code = code
        self.conditioning = conditioning
        self.backend = backend
        self.revision = Revision()
        self.saturated = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty stores for tokens of this shape, dtype and device.

        Raises
        ------
        ValueError
            When the configuration has another head dimension, or the calibration another number of
            KV heads.
        """
        for name, states in (("keys", key_states), ("values", value_states)):
            if states.shape[-1] != self.config.head_dim:
                raise ValueError(
                    f"{name} have head dimension {states.shape[-1]}, "
                    f"configuration {self.config.name!r} needs {self.config.head_dim}"
                )
        batch, kv_heads = key_states.shape[:2]
        calibrated = self.conditioning.kv_heads
        if calibrated is not None and kv_heads != calibrated:
            raise ValueError(
                f"keys have {kv_heads} KV heads, the calibration is of {calibrated}; calibrate for "
                "this model"
            )
        super().lazy_initialization(key_states, value_states)
        self._exponents = ExponentHistory(batch, kv_heads, self.code.tiers.window)
        self._anchors = None
        if self.code.tiers.anchors:
            thresholds = self.conditioning.anchor_thresholds
            if thresholds is None:
                raise ValueError(
                    f"code {str(self.code)!r} has anchors, and the calibration no thresholds for "
                    "them; calibrate for this model"
                )
            device = key_states.device
            self._anchors = AnchorHistory(self.code.tiers, thresholds, batch, device)

    @torch.compiler.disable
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[CachePass, CachePass]:
        """Append tokens [batch, kv_heads, tokens, D]; return the pass twice, for keys and values.

        Raises
        ------
        UserError
            When the context grows beyond `max_context`.
        ValueError
            When keys and values do not fit each other, or do not fit the stored ones.
        """
        new_tokens = key_states.shape[-2]
        self.admit(key_states, value_states)
        tokens = self.get_seq_length() + new_tokens
        if tokens > self.config.max_context:
            raise UserError(
                f"context: {tokens} tokens; configuration {self.config.name!r} allows at most "
                f"max_context = {self.config.max_context}"
            )
        condition = self.conditioning
        keys, saturated_keys = condition.integer_keys(key_states)
        values, saturated_values = condition.integer_values(value_states)
        self.saturated += saturated_keys + saturated_values
        vectors = keys, values
        keys, values = condition.rotated(condition.centred(keys)), condition.rotated(values)
        if self._anchors is not None:
            self._decide(tokens - new_tokens)  # after an update without attention
            self._anchors.append(new_tokens)
            if new_tokens == 1:
                self._decide(tokens)
        stored_keys, stored_values = self.keys.append(keys), self.values.append(values)
        self._written = stored_values
        self._exponents.write(stored_values.came, self._left(tokens))
        windows = stored_keys.window, stored_values.window
        exponents = self._exponents.newest
        result = CachePass(
            self.config,
            self.code,
            condition,
            self.backend,
            stored_keys.view,
            stored_values.view,
            new_tokens,
            None if windows[0] is None or windows[1] is None else (windows[0], windows[1]),
            vectors,
            exponents,
            partial(self._exponents.settle, exponents),
            self.revision,
        )
        if self._anchors is not None:
            result = replace(result, observe=partial(self._observe, result))
        return result, result

    def _decide(self, tokens: int) -> None:
        """Decide which tokens that have left the window of `tokens` tokens are anchors."""
        known, left = self.keys.anchored, self.code.tiers.body(tokens)
        if self._anchors is None or known.shape[-1] == left:
            return
        sinks = self.code.tiers.sinks
        new = self._anchors.decide(known, sinks + known.shape[-1], sinks + left)
        self.keys.anchored = self.values.anchored = torch.cat((known, new), -1)
        if self.keys.body.tokens == left:  # they have been written as tokens of the body
            self._exponents.revise(self._left(tokens))

    def _left(self, tokens: int) -> np.ndarray:
        """Return the exponents that the tokens wrote that the newest update pushed out."""
        written, count = self._written, self._written.left.shape[-1]
        body = self.code.tiers.body(tokens)
        known = self.values.anchored[..., max(body - count, 0) :].numpy(force=True)
        if not known.any():
            return written.left
        before = max(count - body, 0)
        padded = np.pad(known, ((0, 0), (0, 0), (before, count - before - known.shape[-1])))
        return np.where(padded, written.left_in_tier, written.left)

    def _observe(self, cache: CachePass, hits: Tensor) -> CachePass:
        """Take the hits of the queries of a pass; return the pass with its anchors.

        A pass that was followed by another update, or removed, keeps the decisions made then.
        """
        history, tokens = self._anchors, cache.tokens
        if history is None or history.tokens != tokens or cache.revision is not self.revision:
            return cache
        history.observe(hits)
        self._decide(tokens)
        exponents = self._exponents.newest
        first = tokens - self.code.tiers.spread(tokens).window
        return replace(
            cache,
            keys=cache.keys._replace(anchored=self.keys.anchored),
            values=cache.values._replace(anchored=self.values.anchored),
            exponents=exponents,
            settle=partial(self._exponents.settle, exponents),
            hits=(history.hits(first, tokens, tokens - 1), history.hits(first, tokens)),
        )

    @property
    def is_sliding(self) -> bool:
        """Whether the layer has a sliding window; transformers chooses the layer's mask by this."""
        return self.code.tiers.sliding is not None

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return the number of tokens that `query_length` new tokens attend to, and the first one.

        The first one is an index in the context.
        """
        tokens = self.get_seq_length()
        sliding = self.code.tiers.sliding
        kept = tokens if sliding is None else min(tokens, sliding - 1)
        return kept + query_length, tokens - kept

    def get_max_length(self) -> int:
        """Return the largest number of tokens that can be stored."""
        return self.config.max_context

    def reset(self) -> None:
        """Remove all tokens; the next tokens may have another batch size."""
        super().reset()
        self.saturated = 0
        self.revision = Revision()

    def check_crop(self, tokens_to_remove: int) -> None:
        """Raise the errors of `crop` without changing anything."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"tokens_to_remove: {tokens_to_remove} is not allowed; must be zero or negative"
            )
        kept = self.get_seq_length() + tokens_to_remove
        if kept > 0:
            self.keys.check_crop(kept)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens and their effect on the value exponent.

        Afterwards the layer is as it was before these tokens were appended.

        Raises
        ------
        ValueError
            When `tokens_to_remove` is positive, as in the layers of transformers; and when tokens
            that left the window before the newest update, and so are in the body's digits, would
            have to be in the window again.
        """
        self.check_crop(tokens_to_remove)
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        kept = self.get_seq_length() + tokens_to_remove
        if kept <= 0:
            self.reset()
            return
        self.keys.crop(kept)
        self.values.crop(kept)
        self._exponents.crop(kept)
        if self._anchors is not None:
            self._anchors.crop(kept)
        self.revision = Revision()

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to vectors and value exponents."""
        super().map_batch(function)
        if self.is_initialized:
            self._exponents.map_batch(function)
            if self._anchors is not None:
                self._anchors.map_batch(function)
            self.revision = Revision()

    def _empty_stores(
        self, key_states: Tensor, value_states: Tensor
    ) -> tuple[TieredStore, TieredStore]:
        shape = *key_states.shape[:2], key_states.device
        condition, used = self.conditioning, self.code.feedback
        return (
            TieredStore(
                self.config, self.code, "key", condition.key_feedback if used else None, *shape
            ),
            TieredStore(
                self.config, self.code, "value", condition.value_feedback if used else None, *shape
            ),
        )

    def _shared(self) -> tuple[object, ...]:
        condition = self.conditioning
        feedback = condition.key_feedback, condition.value_feedback
        return self.config, self.code, condition, *feedback, self.backend


class TernaryCache(StoredCache):
    """A whole model's cache of ternary planes, to be passed as ``past_key_values``.

    The model must run with `golden.attend.attention.ATTENTION` as its attention implementation.

    Parameters
    ----------
    code : one code for all layers, or a table with one code per layer
    conditioning : one entry per layer
    windows : sliding window of each layer in tokens, None in layers without; no layer has one when
        None
    """

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode | CodeTable,
        conditioning: Sequence[Conditioning],
        backend: AttentionBackend,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        codes = code.for_layers([None] * len(conditioning) if windows is None else windows)
        super().__init__(
            layers=[
                TernaryCacheLayer(config, of_layer, entry, backend)
                for of_layer, entry in zip(codes, conditioning, strict=True)
            ]
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens from all layers, or from none.

        Raises
        ------
        ValueError
            When `TernaryCacheLayer.crop` raises it for a layer.
        """
        for layer in self.layers:
            layer.check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def bits_per_element(self) -> float:
        """Return the true bits: stored bits per cached element, with all that is stored per token.

        Raises
        ------
        ValueError
            When the cache is empty.
        """
        elements = sum(layer.stored_elements() for layer in self.layers)
        if not elements:
            raise ValueError("bits per element: the cache is empty; store tokens first")
        return 8 * sum(layer.stored_bytes() for layer in self.layers) / elements
