"""A cache layer of the baselines, and the attention function that reads it.

Importing this module registers the function under the name `BASELINE_ATTENTION`. It computes in
float32 what any attention computes, over vectors as their formats give them back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from golden.baselines.codecs import Codec
from golden.baselines.tiers import TieredVectors
from golden.cache_layer import StoredLayer
from golden.conditioning import Conditioning
from golden.versions import attend

__all__ = ["BASELINE_ATTENTION", "BaselineCache", "BaselineLayer", "LayerRules", "TierRule"]

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
    """How a layer stores keys and values; None takes them as they come."""

    keys: TierRule
    values: TierRule
    conditioning: Conditioning | None = None


class BaselineLayer(StoredLayer[TieredVectors]):
    """One layer: keys and values under a rule each, conditioned or as they come."""

    def __init__(self, rules: LayerRules) -> None:
        super().__init__()
        self._rules = rules
        self._conditioning = rules.conditioning

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty stores."""
        self.keys, self.values = (
            TieredVectors(rule.short, rule.long, rule.sinks, rule.short_tokens, states.shape[-1])
            for rule, states in (
                (self._rules.keys, key_states),
                (self._rules.values, value_states),
            )
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[BaselineLayer, BaselineLayer]:
        """Append tokens [batch, kv_heads, tokens, D]; returns this layer for keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._conditioning is not None:
            key_states = self._conditioning.condition_keys(key_states)[0] * self._key_unit
            value_states = self._conditioning.condition_values(value_states)[0] * self._value_unit
        self.keys.append(key_states.float())
        self.values.append(value_states.float())
        return self, self

    def attend(self, queries: Tensor, visible: Tensor | None) -> Tensor:
        """Attention of the newest chunk.

        Parameters
        ----------
        queries : float32 [batch, heads, I, D], with the factor on the scores
        visible : bool [batch, 1, I, T]; the newest I tokens' causal attention when None

        Returns
        -------
        float32 [batch, heads, I, D]
        """
        keys, values = self.keys.versions(), self.values.versions()
        if self._conditioning is not None:
            queries = self._conditioning.condition_queries(queries).float() / self._key_unit
        if visible is None and queries.shape[-2] > 1:
            shape = queries.shape[-2], keys.vectors.shape[-2]
            causal = torch.ones(shape, dtype=torch.bool, device=queries.device)
            visible = causal.tril(shape[1] - shape[0])[None, None]
        grouped = queries.unflatten(1, (keys.vectors.shape[1], -1))
        outputs = attend(grouped, keys, values, visible).flatten(1, 2)
        if self._conditioning is not None:
            outputs = self._conditioning.restore_outputs(outputs.double() / self._value_unit)
        return outputs.float()

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.is_initialized = False

    @property
    def _key_unit(self) -> float:
        """What one of the integers of conditioned keys is worth, so that scales fit fp16."""
        return 0.0 if self._conditioning is None else 2.0**self._conditioning.key_exponent

    @property
    def _value_unit(self) -> float:
        return 0.0 if self._conditioning is None else 2.0**self._conditioning.value_exponent


class BaselineCache(Cache):
    """A whole model's cache; the model must run with `BASELINE_ATTENTION`."""

    def __init__(self, rules: Sequence[LayerRules]) -> None:
        super().__init__(layers=[BaselineLayer(entry) for entry in rules])


def baseline_attention(
    module: nn.Module,
    query: Tensor,
    key: BaselineLayer,
    value: BaselineLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [batch, heads, I, D] over a layer, [batch, I, heads, D].

    Raises
    ------
    TypeError
        When the model did not run with a `BaselineCache`.
    """
    if not isinstance(key, BaselineLayer):
        raise TypeError(f"key is a {type(key).__name__}, not a layer of a BaselineCache")
    factor = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    outputs = key.attend(query.float() * factor, attention_mask)
    return outputs.transpose(1, 2).contiguous().to(query.dtype), None


AttentionInterface.register(BASELINE_ATTENTION, baseline_attention)
AttentionMaskInterface.register(BASELINE_ATTENTION, sdpa_mask)
