"""Watching: runs a model so that a function gets the inputs of every layer's attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from golden.attend.plain_attention import plain_attention
from golden.llm.models import LanguageModel

__all__ = ["LayerInputs", "watched"]

_WATCHED = "kvtq_watched"


class LayerInputs(NamedTuple):
    """The inputs of one layer's attention for one sequence of T tokens.

    module : the layer's attention module
    queries : [heads, T, D], not scaled
    keys, values : [kv_heads, T, D]
    scaling : factor on the scores
    sink_logits : learned sinks [heads], natural logarithms; None without
    """

    module: nn.Module
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    sink_logits: Tensor | None = None

    @property
    def layer(self) -> int:
        """Index of the layer in the model."""
        return cast(int, self.module.layer_idx)


@contextmanager
def watched(
    language_model: LanguageModel, watch: Callable[[LayerInputs], Tensor | None]
) -> Iterator[None]:
    """Make every layer's attention call `watch` while the model runs on single sequences.

    Parameters
    ----------
    watch : returns the layer's outputs [heads, T, D], or None to leave them to `plain_attention`
    """

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        factor = 1 / math.sqrt(key.shape[-1]) if scaling is None else scaling
        inputs = LayerInputs(module, query[0], key[0], value[0], factor, kwargs.get("s_aux"))
        outputs = watch(inputs)
        if outputs is not None:
            return outputs.transpose(0, 1)[None].contiguous(), None
        return plain_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)

    AttentionInterface.register(_WATCHED, attention)
    AttentionMaskInterface.register(_WATCHED, sdpa_mask)
    with language_model.attending_with(_WATCHED):
        yield
