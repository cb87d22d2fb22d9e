"""Losses of layers under a cache code, and a warning about layers that lose far more than others.

A layer's loss is the energy of the error of its attention outputs, behind the output projection,
relative to the energy of these outputs. It is measured on the first tokens of Python's
documentation, with keys and values in the body's digits, sinks excepted. A layer that loses far
more than the others has keys or values that calibration could not make fit for the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from golden.learned_sinks import softmax
from golden.llm.calibration import output_projection
from golden.study.coded_layers import CodedLayer
from kvtq_hw.contract.codes import CacheCode, CodeTable

__all__ = ["layer_losses", "loss_warning"]

#: Multiple of the median layer's loss from which a layer is named. Worst layers of SmolLM2-135M and
#: Gemma 3 270M in 1 to 3 balanced digits with feedback 1.4 to 2.0 and 2.7; in `residual:4/3`, which
#: no equalizer helps, 1.6 and 6.6, and 7.4 in SmolLM2 with biases of 300 on keys of two layers.
_FAR = 5.0
# Most layers that one line names.
_NAMED = 8


def layer_losses(layers: Sequence[CodedLayer]) -> Tensor:
    """Return each layer's loss, float64 [layers]."""
    return torch.stack([_loss(layer) for layer in layers]).cpu()


def loss_warning(code: CacheCode | CodeTable, layers: Sequence[CodedLayer]) -> str | None:
    """Return a one-line warning that names layers which lose far more than others, else None."""
    losses = layer_losses(layers)
    times = losses / losses.median().clamp(min=1e-300)
    far = [layer for layer in times.argsort(descending=True).tolist() if times[layer] > _FAR]
    if not far:
        return None
    named = ", ".join(f"{layer} ({times[layer]:.0f} times)" for layer in far[:_NAMED])
    more = f" and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
    return (
        f"layers {named}{more}: code {str(code)!r} changes their attention outputs more than "
        f"{_FAR:.0f} times as much as those of the median layer; give these layers more digits, as "
        "kvtq-hw allocate does"
    )


def _loss(layer: CodedLayer) -> Tensor:
    """Return the loss of one layer, float64."""
    inputs, first = layer.inputs, layer.code.tiers.sinks
    keys, values = inputs.keys.double(), inputs.values.double()
    heads, (kv_heads, tokens, dim) = len(inputs.queries), keys.shape
    queries = (inputs.queries.double() * inputs.scaling).unflatten(0, (kv_heads, -1))
    sinks = inputs.sink_logits
    of_groups = None if sinks is None else sinks.double().unflatten(0, (kv_heads, -1))
    projection = output_projection(inputs.module, heads, dim).to(keys.device).double()

    def projected(keys: Tensor, values: Tensor) -> Tensor:
        scores = (queries @ keys[:, None].mT).masked_fill(~layer.causal, -math.inf)
        outputs = (softmax(scores, of_groups) @ values[:, None]).flatten(0, 1)
        return (outputs @ projection.mT).sum(0)

    behind = (torch.arange(tokens, device=keys.device) >= first)[:, None]  # the sinks are exact
    exact = projected(keys, values)
    change = projected(keys + layer.key_errors * behind, values + layer.value_errors * behind)
    return (change - exact).square().sum() / exact.square().sum().clamp(min=1e-300)
