"""A cache layer of the baselines, and the attention function that reads it.

Importing this module registers the function under the name `BASELINE_ATTENTION`. The function
computes standard attention in float32 over the decoded vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from golden.attend.single_precision import attend
from golden.cache.layer import StoredCache, StoredLayer
from golden.causal import causal_mask
from golden.study.baselines.codecs import Codec
from golden.study.baselines.tiers import TieredVectors, VersionedVectors
from golden.study.baselines.transforms import Transform

__all__ = [
    "BASELINE_ATTENTION",
    "BaselineCache",
    "BaselineLayer",
    "BaselinePass",
    "LayerRules",
    "TierRule",
]

BASELINE_ATTENTION = "kvtq_baseline"


@dataclass(frozen=True)
class TierRule:
    """How the vectors of one tensor are stored; see `TieredVectors`."""

    short: Codec
    long: Codec
    short_tokens: Callable[[int], int]
    sinks: int = 0


@dataclass(frozen=True)
class LayerRules:
    """How a layer stores keys and values; without a transform, vectors are stored as they are."""

    keys: TierRule
    values: TierRule
    transform: Transform | None = None


@dataclass(frozen=True)
class BaselinePass:
    """The contents of a layer after an update, as input of the attention function.

    keys, values : all stored vectors
    transform : what was done to the stored vectors; None for nothing
    """

    keys: VersionedVectors
    values: VersionedVectors
    transform: Transform | None

    def attend(
        self, queries: Tensor, visible: Tensor | None, s_aux: Tensor | None = None
    ) -> Tensor:
        """Compute the attention of the newest chunk.

        Parameters
        ----------
        queries : float32 [batch, heads, I, D], multiplied by the factor on the scores
        visible : bool [batch, 1, I, T]; the newest I tokens' causal attention when None
        s_aux : learned sinks [heads], or None

        Returns
        -------
        float32 [batch, heads, I, D]
        """
        (keys, other_keys), (values, other_values) = self.keys.read(), self.values.read()
        if self.transform is not None:
            queries = self.transform.queries(queries)
        if visible is None and queries.shape[-2] > 1:
            causal = causal_mask(queries.shape[-2], keys.shape[-2], device=queries.device)
            visible = causal[None, None]
        grouped = queries.unflatten(1, (keys.shape[1], -1))
        sinks = None if s_aux is None else s_aux.unflatten(0, (keys.shape[1], -1))
        outputs = attend(
            grouped, keys, values, visible, other_keys, other_values, sink_logits=sinks
        ).flatten(1, 2)
        return outputs if self.transform is None else self.transform.outputs(outputs)


class BaselineLayer(StoredLayer[TieredVectors]):
    """One layer: keys and values with one rule each, transformed or not."""

    def __init__(self, rules: LayerRules) -> None:
        super().__init__()
        self._rules = rules

    @torch.compiler.disable
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[BaselinePass, BaselinePass]:
        """Append tokens [batch, kv_heads, tokens, D]; return the pass twice, for keys and values.

        Raises
        ------
        ValueError
            When keys and values do not fit each other, or do not fit the stored ones.
        """
        self.admit(key_states, value_states)
        transform = self._rules.transform
        if transform is not None:
            key_states, value_states = transform.keys(key_states), transform.values(value_states)
        keys = self.keys.append(key_states.float())
        values = self.values.append(value_states.float())
        result = BaselinePass(keys, values, transform)
        return result, result

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to remove tokens: short tokens and groups of tokens cannot be restored.

        Raises
        ------
        ValueError
            When any token is to be removed.
        """
        if tokens_to_remove:
            raise ValueError(
                f"tokens_to_remove: {tokens_to_remove} is not allowed; this cache cannot be "
                "cropped, use a fresh one"
            )

    def _empty_stores(
        self, key_states: Tensor, value_states: Tensor
    ) -> tuple[TieredVectors, TieredVectors]:
        keys, values = (
            TieredVectors(
                rule.short,
                rule.long,
                rule.sinks,
                rule.short_tokens,
                states.shape[-1],
                states.device,
            )
            for rule, states in (
                (self._rules.keys, key_states),
                (self._rules.values, value_states),
            )
        )
        return keys, values

    def _shared(self) -> tuple[object, ...]:
        rules = self._rules
        codecs = (codec for rule in (rules.keys, rules.values) for codec in (rule.short, rule.long))
        return rules, *codecs


class BaselineCache(StoredCache):
    """A whole model's cache; the model must run with `BASELINE_ATTENTION`."""

    def __init__(self, rules: Sequence[LayerRules]) -> None:
        super().__init__(layers=[BaselineLayer(entry) for entry in rules])


@torch.compiler.disable
def baseline_attention(
    module: nn.Module,
    query: Tensor,
    key: BaselinePass,
    value: BaselinePass,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention of `query` [batch, heads, I, D] over a layer: [batch, I, heads, D].

    A compiled model leaves its graph for this function.

    Raises
    ------
    TypeError
        When the model did not run with a `BaselineCache`.
    """
    if not isinstance(key, BaselinePass):
        raise TypeError(
            f"the model's cache gave the attention a {type(key).__name__}; {BASELINE_ATTENTION!r} "
            "needs a BaselineCache: pass past_key_values=cache_format.make_cache()"
        )
    factor = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    outputs = key.attend(query.float() * factor, attention_mask, s_aux)
    return outputs.transpose(1, 2).contiguous().to(query.dtype), None


AttentionInterface.register(BASELINE_ATTENTION, baseline_attention)
AttentionMaskInterface.register(BASELINE_ATTENTION, sdpa_mask)
