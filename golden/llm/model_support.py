"""Check whether a model runs on a ternary cache, from its configuration, before reading weights.

A ternary cache needs plain attention: one softmax over the whole context in every layer, with keys
and values of one size that are cached as attention reads them. The check does not go by the model's
name. It builds the model from its configuration without memory for weights (on PyTorch's meta
device) and runs it on three tokens, with an attention function and a mask function that record the
arguments of each layer.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging as transformers_logging

from kvtq_hw.contract.errors import UserError

__all__ = ["HeadShape", "check_supported", "head_shape", "quiet_transformers"]

_TRIED = "kvtq_tried"
_TOKENS = 3
# More layers than any model has. Even without weights, every layer takes time to build.
_MOST_LAYERS = 1024
_PLAIN = "full_attention"

# Arguments by which models change the attention itself, and the meaning of each.
_VARIANTS = {
    "sliding_window": "attention to a sliding window of {} tokens",
    "softcap": "soft-capped scores (cap {})",
    "s_aux": "learned attention sinks",
    "position_bias": "a position bias on scores",
}


class HeadShape(NamedTuple):
    """Numbers of KV heads per layer, query heads per KV head, and elements per head vector."""

    kv_heads: int
    query_group: int
    head_dim: int


def head_shape(config: PreTrainedConfig) -> HeadShape:
    """Return the shape of the attention heads in a model's configuration."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return HeadShape(kv_heads, heads // kv_heads, dim)


def check_supported(name: str, config: PreTrainedConfig) -> None:
    """Check that a model of this configuration runs on a ternary cache, without reading weights.

    Parameters
    ----------
    name : name of the model in the message

    Raises
    ------
    UserError
        With the reason in one line: another kind of attention, or layers without attention.
    """
    reason = _reason(config)
    if reason is not None:
        raise UserError(
            f"model {name!r} ({config.model_type}) does not run on a ternary cache: {reason}; "
            "allowed are decoders whose layers all attend to the whole context by one softmax"
        )


def _reason(config: PreTrainedConfig) -> str | None:
    """Return why a model does not run on a ternary cache; None if the model does."""
    said = _said_reason(config)
    if said is not None:
        return said
    try:
        model = _build_on_meta(config)
    except Exception as error:  # the code of any model, on a configuration of any content
        return f"no model can be built from its configuration: {_in_words(error)}"
    trial = _tried(model)
    if trial.calls:
        return trial.reason(head_shape(config), _layers(config))
    if trial.failure is not None:
        return f"its code cannot be followed without weights: {trial.failure}"
    # transformers sets this flag on models that need special care in generation
    if getattr(model, "_is_stateful", False):
        return "it keeps a recurrent state instead of keys and values"
    return "its attention code does not go through transformers' attention interface"


def _said_reason(config: PreTrainedConfig) -> str | None:
    """Return why a model does not run on a ternary cache, as far as its configuration tells."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if kinds - {_PLAIN}:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    layers = _layers(config)
    if layers > _MOST_LAYERS:
        return f"it has {layers} layers, more than {_MOST_LAYERS}"
    return None


def _layers(config: PreTrainedConfig) -> int:
    """Return the number of layers in a configuration."""
    return getattr(config.get_text_config(), "num_hidden_layers", 0)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@dataclass
class _Call:
    """The arguments of one layer's call of the attention function."""

    layer: int
    variant: str | None
    causal: bool
    shapes: tuple[torch.Size, torch.Size, torch.Size]
    cached: bool


@dataclass
class _Trial:
    """A run of a model without weights: its calls of the attention function, in order.

    failure : message of the error that ended the run early
    """

    calls: list[_Call] = field(default_factory=list)
    failure: str | None = None

    def reason(self, shape: HeadShape, layers: int) -> str | None:
        """Return why a ternary cache cannot serve the calls; None if it can.

        Parameters
        ----------
        shape, layers : heads and number of layers in the model's configuration
        """
        times = Counter(call.layer for call in self.calls)
        for call in self.calls:
            query, key, value = call.shapes
            if call.variant is not None:
                return f"layer {call.layer} has {call.variant}"
            if not call.causal:
                return f"layer {call.layer} has attention that is not causal"
            if times[call.layer] > 1:
                return f"layer {call.layer} computes {times[call.layer]} attentions, not one"
            if key[-1] != value[-1]:
                return (
                    f"layer {call.layer} has keys of {key[-1]} elements and values of {value[-1]}, "
                    "as multi-head latent attention has"
                )
            if not call.cached:
                return f"layer {call.layer} does not attend to keys and values as they are cached"
            found = HeadShape(key[1], query[1] // key[1], key[-1])
            if found != shape:
                return (
                    f"layer {call.layer} has {found.kv_heads} KV heads of {found.head_dim} "
                    f"elements, its configuration says {shape.kv_heads} of {shape.head_dim}"
                )
        missing = sorted(set(range(layers)) - set(times))
        if missing and self.failure is None:
            return f"layer {missing[0]} has no attention of its own"
        return None


def _tried(model: PreTrainedModel) -> _Trial:
    """Run a model without weights, with a mask and then without, until its attention is called."""
    # some models look for padding in the tokens when there is no mask, others look into the mask
    for masked in (True, False):
        trial = _Trial()
        try:
            _run_on_meta(model, trial, masked)
        except Exception as error:  # the code of any model
            trial.failure = _in_words(error)
        if trial.calls or trial.failure is None:
            break
    return trial


def _build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model of a configuration without memory for weights."""
    with quiet_transformers(), torch.device("meta"):
        # bfloat16, because matrix products of experts have no other dtype on the meta device
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.bfloat16, trust_remote_code=False
        )
    return model.eval()


def _run_on_meta(model: PreTrainedModel, trial: _Trial, masked: bool) -> None:
    """Run a model without weights on a few tokens, and record its attention calls in the trial.

    masked : give the model a mask that hides no token, instead of no mask
    """
    cache = DynamicCache()
    local_masks: dict[int, tuple[Tensor, int]] = {}

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        layer = int(getattr(module, "layer_idx", -1))
        variants = [
            words.format(kwargs[name])
            for name, words in _VARIANTS.items()
            if kwargs.get(name) is not None
        ]
        if attention_mask is not None:
            _, size = local_masks.get(id(attention_mask), (None, None))
            variants.append(
                f"attention to chunks or windows of {size} tokens" if size else "a mask of its own"
            )
        held = cache.layers[layer] if 0 <= layer < len(cache.layers) else None
        trial.calls.append(
            _Call(
                layer=layer,
                variant=variants[0] if variants else None,
                causal=bool(getattr(module, "is_causal", True)),
                shapes=(query.shape, key.shape, value.shape),
                cached=held is not None and key is held.keys and value is held.values,
            )
        )
        outputs = query.new_empty(*query.shape[:-1], value.shape[-1])
        return outputs.transpose(1, 2).contiguous(), None

    def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Tensor | None:
        """Return None where a query sees all tokens before it; else a recognizable mask."""
        if local_size is None:
            return None
        made = torch.ones(1, 1, _TOKENS, _TOKENS, dtype=torch.bool)
        local_masks[id(made)] = made, local_size
        return made

    AttentionInterface.register(_TRIED, attention)
    AttentionMaskInterface.register(_TRIED, mask)
    with quiet_transformers(), torch.device("meta"), torch.inference_mode():
        model.set_attn_implementation(_TRIED)
        tokens = torch.zeros(1, _TOKENS, dtype=torch.int64)
        padding = torch.ones_like(tokens) if masked else None
        model(tokens, attention_mask=padding, past_key_values=cache, use_cache=True)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars, notes and warnings of transformers off the terminal."""
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
