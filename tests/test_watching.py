"""Watching: what every layer's attention gets, and outputs that take the place of its own."""

from __future__ import annotations

import torch
from tiny_model import tiny_model

from golden.llm.watching import LayerInputs, watched

IDS = torch.tensor([[5, 6, 7, 9, 11, 80, 3]])


def sdpa(inputs: LayerInputs) -> torch.Tensor:
    """PyTorch's attention over what a layer gets, [heads, T, D]."""
    return torch.nn.functional.scaled_dot_product_attention(
        inputs.queries,
        *(x.repeat_interleave(2, 0) for x in (inputs.keys, inputs.values)),
        is_causal=True,
        scale=inputs.scaling,
    )


def test_a_function_sees_every_layer_and_changes_nothing():
    language_model = tiny_model()
    before = language_model.model.config._attn_implementation
    seen: list[LayerInputs] = []
    with torch.no_grad():
        expected = language_model.model(IDS).logits
        with watched(language_model, seen.append):
            found = language_model.model(IDS).logits
        assert torch.equal(language_model.model(IDS).logits, expected)
    assert language_model.model.config._attn_implementation == before
    torch.testing.assert_close(found, expected)
    assert [inputs.layer for inputs in seen] == [0, 1]
    for inputs in seen:
        assert inputs.module is language_model.model.model.layers[inputs.layer].self_attn
        assert [tuple(x.shape) for x in inputs[1:4]] == [(4, 7, 8), (2, 7, 8), (2, 7, 8)]
        assert inputs.scaling == 8**-0.5


def test_outputs_of_the_function_are_those_of_the_layer():
    language_model = tiny_model()
    with torch.no_grad():
        expected = language_model.model(IDS).logits
        with watched(language_model, sdpa):
            torch.testing.assert_close(language_model.model(IDS).logits, expected)
        with watched(language_model, lambda inputs: torch.zeros_like(inputs.queries)):
            layers = language_model.model(IDS, output_hidden_states=True).hidden_states
    hidden = layers[0]
    inner = language_model.model.model.layers[:-1]  # the last hidden states are normalized
    for layer, found in zip(inner, layers[1:-1], strict=True):
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))  # no attention
        torch.testing.assert_close(found, hidden)
