"""Losses of layers: by hand, and the warning that one layer loses far more than the others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_families import LLAMA_LIKE, family_model, random_model
from tiny_model import prompt, tiny_model
from transformers import LlamaConfig

from golden.llm.calibration import calibrate
from golden.llm.models import LanguageModel
from golden.study.coded_layers import coded_layers
from golden.study.coding_error import coding_errors
from golden.study.layer_loss import layer_losses, loss_warning
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode, CodeTable

CODE = CacheCode.parse("balanced:2/2,sinks=2,window=4")


TEXT = prompt(200, seed=3)


@pytest.fixture(autouse=True)
def text(monkeypatch):
    """A text in words of the tiny model; all English words are the same token to it."""
    monkeypatch.setattr("golden.study.coded_layers.documentation_text", lambda: TEXT)


def biased(layer: int | None) -> LanguageModel:
    """A Llama with a bias on keys of one layer, on a pair of channels that no query reads."""
    model = random_model(LlamaConfig(**{**LLAMA_LIKE, "num_hidden_layers": 4}, attention_bias=True))
    if layer is not None:
        attention = model.model.layers[layer].self_attn
        with torch.no_grad():
            attention.q_proj.weight.view(4, 8, -1)[:, [1, 5]] = 0
            attention.q_proj.bias.view(4, 8)[:, [1, 5]] = 0
            attention.k_proj.bias.view(2, 8)[:, [1, 5]] = 300
    return LanguageModel("llama", model, tiny_model().tokenizer)


def measured(language_model: LanguageModel, feedback: bool = False):
    calibration = calibrate(language_model, prompt(60), tokens=50)
    conditioning = calibration.conditioning(feedback=feedback)
    return language_model, conditioning, language_model.engine_config(64)


def test_the_layer_is_named():
    assert loss_warning(CODE, coded_layers(*measured(biased(None)), CODE)) is None
    setup = measured(biased(2))
    line = loss_warning(CODE, coded_layers(*setup, CODE))
    losses = layer_losses(coded_layers(*setup, CODE))
    assert losses.argmax() == 2
    times = losses[2] / losses.median()
    assert line == (
        f"layers 2 ({times:.0f} times): code {str(CODE)!r} changes their attention outputs more "
        "than 5 times as much as those of the median layer; give these layers more digits, as "
        "kvtq-hw allocate does"
    )
    # more digits for that layer are what helps
    codes = [CODE] * 4
    codes[2] = CacheCode.parse("balanced:5/5,sinks=2,window=4")
    assert layer_losses(coded_layers(*setup, CodeTable("more", tuple(codes))))[2] < losses[2] / 3


def test_an_equalizer_leaves_nothing_to_warn_of():
    """With feedback the vectors are equalized."""
    setup = measured(biased(2), feedback=True)
    code = CacheCode.parse("balanced:2/2,sinks=2,window=4,feedback")
    assert loss_warning(code, coded_layers(*setup, code)) is None


def test_loss_by_hand():
    """Query by query, from the model's own projections."""
    language_model, conditioning, config = measured(family_model("opt"))  # no rotary embedding
    model = language_model.model
    ids = language_model.tokenizer(TEXT).input_ids[:128]
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[0]
        block = model.model.decoder.layers[0]
        states = block.self_attn_layer_norm(states)[0]
        attention = block.self_attn
        queries, keys, values = (
            projection(states).view(128, 4, 8)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
    moved_keys, moved_values = (
        coding_errors(config, CODE, side, x.transpose(0, 1), conditioning[0])
        for side, x in (("key", keys), ("value", values))
    )
    weight = attention.out_proj.weight.detach().double()
    energy = change = 0.0
    for i in range(128):
        exact, coded = [], []
        for head in range(4):
            query = queries[i, head].double() / math.sqrt(8)
            parts = []
            for wrong in (0, 1):
                rows = []
                for j in range(i + 1):
                    long = wrong and j >= 2  # the sinks are exact
                    key = keys[j, head].double() + (moved_keys[head, j] if long else 0)
                    value = values[j, head].double() + (moved_values[head, j] if long else 0)
                    rows.append((float(query @ key), value))
                largest = max(score for score, _ in rows)
                shares = [math.exp(score - largest) for score, _ in rows]
                total = sum(shares)
                parts.append(sum(p / total * v for p, (_, v) in zip(shares, rows, strict=True)))
            exact.append(parts[0])
            coded.append(parts[1])
        before, after = (weight @ torch.cat(outputs) for outputs in (exact, coded))
        energy += float(before.square().sum())
        change += float((after - before).square().sum())
    found = layer_losses(coded_layers(language_model, conditioning, config, CODE))[0].item()
    assert found == pytest.approx(change / energy, rel=1e-4)


def test_commands_name_the_layer(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("golden.llm.calibration.DEFAULT_TOKENS", 60)
    language_model = biased(1)
    language_model.model.save_pretrained("model")
    language_model.tokenizer.save_pretrained("model")
    Path("text.txt").write_text(prompt(150, seed=9))
    size = ["--text", "text.txt", "--context", "40", "--segments", "1"]
    assert run(["eval", "--model", "./model", *size, "--code", str(CODE)]) == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "kvtq_hw"]
    assert any(line.startswith("model './model', layers 1 (") for line in lines)
