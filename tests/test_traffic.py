"""Sizes of whole caches, against arithmetic by hand."""

from __future__ import annotations

import pytest

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import bits_per_element
from kvtq_hw.estimates.traffic import CONTEXTS, MEMORIES, MODELS, traffic

CONFIG = load_config("smollm2")
CODES = [CacheCode.parse("balanced:3/2"), CacheCode.parse("balanced:2/1,sinks=4,window=32")]


def test_llama_3_70b_at_1024_tokens_by_hand():
    fp16, int8, int4, plain, tiers = traffic(MODELS["Llama-3-70B"], 1024, CONFIG, CODES)
    vectors = 80 * 8 * 2 * 1024
    assert fp16.cache_bytes == vectors * 256 == 335_544_320
    assert int8.cache_bytes == vectors * 130
    assert int4.cache_bytes == vectors * 66
    # 26 bytes per plane of 128 digits, one byte a scale
    assert plain.cache_bytes == 80 * 8 * 1024 * (5 * 26 + 2)
    assert tiers.cache_bytes == 80 * 8 * (988 * (3 * 26 + 2) + 36 * 2 * (5 * 26 + 1))
    assert fp16.bits_per_element == 16
    assert plain.bits_per_element == 8 * 132 / 256


def test_bits_are_those_of_the_cache():
    *_, plain, tiers = traffic(MODELS["SmolLM2-135M"], 1024, CONFIG, CODES)
    for entry, code in zip((plain, tiers), CODES, strict=True):
        assert entry.bits_per_element == bits_per_element(CONFIG, code, 1024)


def test_bytes_per_token_of_published_models():
    """Keys and values of a token in 16 bits, layers x 2 x KV heads x elements x 2."""
    assert {
        name: traffic(model, 1024, CONFIG, [])[0].cache_bytes // 1024
        for name, model in MODELS.items()
    } == {
        "SmolLM2-135M": 23_040,
        "SmolLM2-1.7B": 196_608,
        "Llama-3.2-1B": 32_768,
        "Llama-3.2-3B": 114_688,
        "Qwen2.5-7B": 57_344,
        "Mistral-7B": 131_072,
        "Llama-3-8B": 131_072,
        "Llama-3-70B": 327_680,
        "Gemma-3-270M": (15 * 512 + 3 * 1024) * 1024 // 1024,  # 15 layers store 512 of 1024 tokens
    }


def test_contexts_are_powers_of_two_from_a_thousand_tokens_to_a_million():
    assert CONTEXTS == (1_024, 4_096, 16_384, 131_072, 1_048_576)


@pytest.mark.parametrize("model", MODELS)
def test_size_grows_with_the_context(model):
    sizes = [traffic(MODELS[model], n, CONFIG, CODES)[-1].cache_bytes for n in CONTEXTS]
    assert sizes == sorted(set(sizes))


def test_energy_is_size_times_energy_per_bit():
    [fp16, *_] = traffic(MODELS["Llama-3-8B"], 1024, CONFIG, [])
    assert fp16.cache_bytes == 1 << 27
    assert fp16.millijoules(MEMORIES["HBM2"]) == pytest.approx(8 * (1 << 27) * 3.92e-9)


def test_gemma_3_at_2048_tokens_by_hand():
    fp16, int8, _, plain, tiers = traffic(MODELS["Gemma-3-270M"], 2048, CONFIG, CODES)
    tokens = 15 * 512 + 3 * 2048
    assert fp16.cache_bytes == tokens * 2 * 256 * 2
    assert int8.cache_bytes == tokens * 2 * (256 + 2)
    # 52 bytes per plane of 256 digits; four sinks are left where the context is
    assert plain.cache_bytes == tokens * (5 * 52 + 2)
    long = 2 * (5 * 52 + 1)
    body = 3 * 52 + 2
    assert tiers.cache_bytes == 15 * (480 * body + 32 * long) + 3 * (2012 * body + 36 * long)
    assert tiers.bits_per_element == 8 * tiers.cache_bytes / (tokens * 2 * 256)


def test_refuses_a_sliding_window_of_another_model():
    with pytest.raises(UserError, match="layer 0 of the model has no sliding window"):
        traffic(MODELS["Llama-3-8B"], 64, CONFIG, [CacheCode.parse("balanced:3/2,sliding=16")])


def test_refuses_an_empty_context():
    with pytest.raises(ValueError, match=r"^context: 0 is not allowed; must be at least 1$"):
        traffic(MODELS["Llama-3-8B"], 0, CONFIG, [])
