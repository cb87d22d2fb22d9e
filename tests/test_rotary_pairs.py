"""Pairs of channels that RoPE turns, found by asking models of many families."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_families import FAMILIES, LLAMA_LIKE, family_model, random_model
from tiny_model import tiny_model
from transformers import (
    CohereConfig,
    GlmConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    SmolLM3Config,
)

from golden.llm.models import LanguageModel
from golden.llm.rotary_pairs import rotary_partners

HALVES = [4, 5, 6, 7, 0, 1, 2, 3]
ALONE = [0, 1, 2, 3, 4, 5, 6, 7]

EXPECTED: dict[str, list[list[int]]] = {
    **dict.fromkeys(("llama", "mistral", "mistral, windows", "qwen2", "gpt_oss"), [HALVES] * 2),
    "qwen3": [[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]] * 2,
    "gemma3": [[*range(8, 16), *range(8)]] * 3,
    "gpt_neox": [[1, 0, 2, 3, 4, 5, 6, 7]] * 2,  # turns a quarter of the channels
    "opt": [ALONE] * 2,
    "gpt2": [ALONE] * 2,
}

#: Layouts that the families on the cache do not have.
MORE: dict[str, tuple[Callable[[], PreTrainedConfig], list[list[int]]]] = {
    "neighbours": (lambda: CohereConfig(**LLAMA_LIKE), [[1, 0, 3, 2, 5, 4, 7, 6]] * 2),
    "half of the channels, neighbours": (
        lambda: GlmConfig(**LLAMA_LIKE, head_dim=8),
        [[1, 0, 3, 2, 4, 5, 6, 7]] * 2,
    ),
    "half of the channels": (lambda: PhiConfig(**LLAMA_LIKE), [[2, 3, 0, 1, 4, 5, 6, 7]] * 2),
    "not the fourth layer": (
        lambda: SmolLM3Config(**{**LLAMA_LIKE, "num_hidden_layers": 4}),
        [*[HALVES] * 3, ALONE],
    ),
    "slow": (
        lambda: LlamaConfig(
            **LLAMA_LIKE, rope_parameters={"rope_type": "default", "rope_theta": 1e8}
        ),
        [HALVES] * 2,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    assert rotary_partners(family_model(family)).tolist() == EXPECTED[family]


@pytest.mark.parametrize("layout", MORE)
def test_layouts(layout):
    config, expected = MORE[layout]
    model = random_model(config())
    found = rotary_partners(LanguageModel(layout, model, tiny_model().tokenizer))
    assert found.tolist() == expected


def test_a_pair_of_channels_that_are_always_zero_is_no_pair():
    language_model = tiny_model()
    with torch.no_grad():
        language_model.model.model.layers[1].self_attn.k_proj.weight.view(2, 8, -1)[:, [1, 5]] = 0
    assert rotary_partners(language_model).tolist() == [HALVES, [4, 1, 6, 7, 0, 5, 2, 3]]


def test_a_model_without_positions_has_no_pairs():
    language_model = tiny_model()
    forward = language_model.model.forward
    language_model.model.forward = lambda input_ids, use_cache: forward(input_ids)
    assert rotary_partners(language_model).tolist() == [ALONE, ALONE]
