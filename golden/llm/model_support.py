"""Check whether a model runs on a ternary cache, from its configuration, before reading weights.

A ternary cache needs plain attention: in every layer one softmax over the whole context or over a
*sliding window*, the newest W tokens, with keys and values of one size that are cached as attention
reads them. The check does not go by the model's name, nor by the ways in which configurations name
a window. It builds the model from its configuration without memory for weights (on PyTorch's meta
device) and runs it on three tokens, with an attention function and a mask function that record the
arguments of each layer. What a mask hides is found by asking the mask about single tokens.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
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

from kvtq_hw.contract.errors import UserError, shown

__all__ = [
    "HeadShape",
    "LayerAttention",
    "head_shape",
    "layer_attention",
    "quiet_transformers",
]

_TRIED = "kvtq_tried"
_TOKENS = 3
# Masks are asked about positions up to a power of two beyond any model's context.
_MASK_BITS = 40
# More layers than any model has. Even without weights, every layer takes time to build.
_MOST_LAYERS = 1024
# Kinds of layers that the trial looks into; the names of other kinds say why they are refused.
_LOOKED_INTO = {"full_attention", "sliding_attention"}

# Arguments by which models change the attention itself, and the meaning of each.
_VARIANTS = {
    "softcap": "soft-capped scores (cap {})",
    "position_bias": "a position bias on scores",
}

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Says whether a query sees a token: batch index, head index, query position, token position."""


class HeadShape(NamedTuple):
    """Numbers of KV heads per layer, query heads per KV head, and elements per head vector."""

    kv_heads: int
    query_group: int
    head_dim: int


class LayerAttention(NamedTuple):
    """What the attention of a layer reads.

    window : sliding window W in tokens, the query's own included: a query at position q sees token
        t if ``q - W < t <= q``; None for the whole context
    learned_sinks : each query head has a learned logit in the denominator of its softmax
    """

    window: int | None
    learned_sinks: bool


def head_shape(config: PreTrainedConfig) -> HeadShape:
    """Return the shape of the attention heads in a model's configuration."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return HeadShape(kv_heads, heads // kv_heads, dim)


def layer_attention(name: str, config: PreTrainedConfig) -> tuple[LayerAttention, ...]:
    """Find what each layer's attention reads, without reading weights.

    Parameters
    ----------
    name : name of the model in the message

    Raises
    ------
    UserError
        With the reason in one line: another kind of attention, or layers without attention.
    """
    found = _found(config)
    if isinstance(found, str):
        raise UserError(
            f"model {name!r} ({config.model_type}) does not run on a ternary cache: {found}; "
            "allowed are decoders whose layers all attend to the whole context or to a sliding "
            "window by one softmax"
        )
    return found


def _found(config: PreTrainedConfig) -> tuple[LayerAttention, ...] | str:
    """Return what each layer's attention reads, or why the model runs on no ternary cache."""
    said = _said_reason(config)
    if said is not None:
        return said
    try:
        model = _build_on_meta(config)
    except Exception as error:  # the code of any model, on a configuration of any content
        return f"no model can be built from its configuration: {_in_words(error)}"
    trial = _tried(model)
    if trial.calls:
        try:
            shape = head_shape(config)
        except Exception as error:  # transformers refuses to read a field that differs by layer
            return f"its configuration has no one shape of heads for all layers: {_in_words(error)}"
        reason = trial.reason(shape, _layers(config))
        return trial.layers() if reason is None else reason
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
    if kinds - _LOOKED_INTO:
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
    """The arguments of one layer's call of the attention function.

    variant : how the attention differs from one over the whole context or a sliding window
    window : sliding window in tokens; None for the whole context
    """

    layer: int
    variant: str | None
    window: int | None
    learned_sinks: bool
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
            if not call.causal:
                return f"layer {call.layer} has attention that is not causal"
            if call.variant is not None:
                return f"layer {call.layer} has {call.variant}"
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
        if missing:
            return (
                f"its code cannot be followed without weights to layer {missing[0]}: {self.failure}"
            )
        return None

    def layers(self) -> tuple[LayerAttention, ...]:
        """Return what each layer reads; the calls are those of a model without `reason`."""
        calls = sorted(self.calls, key=lambda call: call.layer)
        return tuple(LayerAttention(call.window, call.learned_sinks) for call in calls)


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
    # what each mask hides, by the identity of a tensor that stands for it
    masks: dict[int, tuple[Tensor, int | str]] = {}

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
        window = None
        if attention_mask is not None:
            _, hidden = masks.get(id(attention_mask), (None, "a mask of its own"))
            if isinstance(hidden, str):
                variants.append(hidden)
            else:
                window = hidden
        said = kwargs.get("sliding_window", window)
        if not variants and said != window:
            variants.append(
                f"a sliding window of {said} tokens by one of its arguments, and by its mask "
                f"{'none' if window is None else f'one of {window}'}"
            )
        sinks = kwargs.get("s_aux")
        if sinks is not None and sinks.shape != query.shape[1:2]:
            variants.append(f"learned sinks of shape {tuple(sinks.shape)}, not one per query head")
        held = cache.layers[layer] if 0 <= layer < len(cache.layers) else None
        trial.calls.append(
            _Call(
                layer=layer,
                variant=variants[0] if variants else None,
                window=window,
                learned_sinks=sinks is not None,
                causal=bool(getattr(module, "is_causal", True)),
                shapes=(query.shape, key.shape, value.shape),
                cached=held is not None and key is held.keys and value is held.values,
            )
        )
        outputs = query.new_empty(*query.shape[:-1], value.shape[-1])
        return outputs.transpose(1, 2).contiguous(), None

    def mask(
        *args: Any, mask_function: MaskFunction, local_size: Any = None, **kwargs: Any
    ) -> Tensor | None:
        """Return None where a query sees all tokens before it; else a recognizable mask."""
        hidden = _hidden_by(mask_function, local_size)
        if hidden is None:
            return None
        made = torch.ones(1, 1, _TOKENS, _TOKENS, dtype=torch.bool)
        masks[id(made)] = made, hidden
        return made

    AttentionInterface.register(_TRIED, attention)
    AttentionMaskInterface.register(_TRIED, mask)
    with quiet_transformers(), torch.device("meta"), torch.inference_mode():
        model.set_attn_implementation(_TRIED)
        tokens = torch.zeros(1, _TOKENS, dtype=torch.int64)
        padding = torch.ones_like(tokens) if masked else None
        model(tokens, attention_mask=padding, past_key_values=cache, use_cache=True)


def _hidden_by(mask_function: MaskFunction, size: Any) -> int | str | None:
    """Say what a mask hides by asking it about single tokens around the borders that it could have.

    Parameters
    ----------
    size : size of windows or chunks that comes with the mask; None without

    Returns
    -------
    None for a mask that shows all tokens up to the query's own, the size of a sliding window, or
    what else the mask shows in words.
    """
    borders = [1 << bit for bit in range(_MASK_BITS)]
    if size is not None:
        if not isinstance(size, int) or not 1 <= size < borders[-1]:
            return f"attention to {shown(size)} tokens"
        borders += [size, 2 * size, 3 * size]
    positions = torch.tensor(
        sorted({max(border + step, 0) for border in borders for step in (-2, -1, 0, 1, 2)}),
        device="cpu",
    )
    query, token = positions[:, None], positions[None, :]
    first = torch.zeros((), dtype=torch.int64, device="cpu")
    seen = mask_function(first, first, query, token)
    if seen.device.type == "meta":
        return "a mask that depends on more than positions"
    before = token <= query
    if torch.equal(seen, before):
        return None
    if size is not None:
        if torch.equal(seen, before & (token > query - size)):
            return size
        if torch.equal(seen, before & (token // size == query // size)):
            return f"attention to chunks of {size} tokens"
    return "a mask of its own"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars, notes and warnings of transformers off the terminal."""
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        # the bar of dequantized GGUF tensors is no bar of transformers' own
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
