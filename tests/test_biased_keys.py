"""Keys with a large bias, as Qwen 2 has them: the cache loses about what it loses without one."""

from __future__ import annotations

import pytest
import torch
from test_families import LLAMA_LIKE, ids, random_model
from tiny_model import prompt, tiny_model
from transformers import PreTrainedModel, Qwen2Config

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.equalizer import Equalizer
from golden.llm.calibration import calibrate
from golden.llm.channel_power import ChannelPower
from golden.llm.decoding import make_cache
from golden.llm.models import LanguageModel
from kvtq_hw.commands.frame.session import load_session, on_accelerator
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

CODE = "balanced:2/2,sinks=4,window=8,feedback"


def biased_model(bias: float, head_dim: int, pair: int = 1) -> PreTrainedModel:
    """A Qwen 2 with a bias on the keys of one pair of channels that no query reads."""
    model = random_model(Qwen2Config(**{**LLAMA_LIKE, "head_dim": head_dim}))
    channels = [pair, pair + head_dim // 2]
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.q_proj.weight.view(4, head_dim, -1)[:, channels] = 0
            attention.q_proj.bias.view(4, head_dim)[:, channels] = 0
            attention.k_proj.bias.view(2, head_dim)[:, channels] += bias
    return model


def divergence(bias: float) -> float:
    """Mean divergence of the predictions on a cache from the model's own, in nats."""
    model = biased_model(bias, head_dim=64)
    language_model = LanguageModel("qwen2", model, tiny_model().tokenizer)
    calibration = calibrate(language_model, prompt(400), tokens=400)
    config = language_model.engine_config(128)
    cache = make_cache(config, CacheCode.parse(CODE), calibration, GoldenBackend())
    tokens = ids(120, seed=5)
    with torch.inference_mode():
        exact = model(tokens).logits.double().log_softmax(-1)
        model.set_attn_implementation(ATTENTION)
        found = model(tokens, past_key_values=cache).logits.double().log_softmax(-1)
    return (exact.exp() * (exact - found)).sum(-1).mean().item()


@pytest.mark.parametrize("bias", [100, 600])
def test_a_bias_costs_little(bias):
    assert divergence(bias) < 1.2 * divergence(0)


@pytest.mark.parametrize("bias", [100, 600])
def test_without_key_scales_it_costs_much(bias, monkeypatch):
    real = ChannelPower.equalizer

    def unscaled(power: ChannelPower, partners: torch.Tensor) -> Equalizer:
        found = real(power, partners)
        return Equalizer(torch.ones_like(found.key_scales), found.value_basis)

    expected = divergence(0)
    monkeypatch.setattr(ChannelPower, "equalizer", unscaled)
    assert divergence(bias) > 3 * expected


@pytest.mark.usefixtures("tiny_folder")  # short calibrations, temporary folders
def test_on_the_rtl():
    """Every output of 16 steps, and every byte of the memory at the end."""
    model = biased_model(600, head_dim=8)
    language_model = LanguageModel("biased", model, tiny_model().tokenizer)
    code = CacheCode.parse("balanced:2/2,sinks=2,window=3,feedback")
    loaded = load_session(language_model, code, 64, preset=load_config("tiny"), tables=True)
    expected = loaded.decode(prompt(9), 17)
    with on_accelerator(loaded, check=True) as session:
        cache = session.new_cache()
        assert session.decode(prompt(9), 17, cache).tokens == expected.tokens
        assert session.checked.outputs_compared == 16 * 2 * 4 * 8
        assert session.checked.mismatches == 0
        compared, different = session.compare_memory(cache)
    assert (compared > 0, different) == (True, 0)
