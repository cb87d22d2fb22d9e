"""Score errors by rounded keys: by hand, and the warning that they are out of the ordinary."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from test_families import FAMILIES, LLAMA_LIKE, family_model
from tiny_model import prompt, tiny_model
from tokenizers import Regex, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from golden.llm.calibration import calibrate
from golden.llm.models import LanguageModel
from golden.study.coded_layers import coded_layers
from golden.study.coding_error import coding_errors
from golden.study.coding_warnings import warn_of_losses
from golden.study.key_error import key_warning, score_errors
from golden.study.quality import documentation_text
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.errors import UserError

CODES = [
    CacheCode.parse("balanced:3/2,sinks=4,window=32,feedback"),
    CacheCode("balanced", 5, 5),
    CacheCode("balanced", 2, 2, feedback=True),
    CacheCode("residual", 4, 3),
]


def biased(bias: float) -> LanguageModel:
    """A Qwen 2 with a bias on two channels of KV head 0's keys and one of KV head 1's."""
    language_model = family_model("qwen2")
    with torch.no_grad():
        for layer in language_model.model.model.layers:
            layer.self_attn.k_proj.bias[[1, 10]] = bias
    return language_model


def measured(language_model: LanguageModel):
    calibration = calibrate(language_model, prompt(60), tokens=50)
    return language_model, calibration.conditioning(), language_model.engine_config(64)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_warning_for_ordinary_models(family):
    setup = measured(family_model(family))
    assert [key_warning(code, coded_layers(*setup, code)) for code in CODES] == [None] * len(CODES)


def test_a_tokenizer_without_words_is_one_line():
    setup = measured(tiny_model())
    setup[0].tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(".|\n"), "removed"
    )
    with pytest.raises(UserError, match=r"^model 'tiny': its tokenizer makes no tokens of an Eng"):
        score_errors(coded_layers(*setup, CODES[0]))


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("bias", [100, 600])
def test_warning_for_keys_with_a_large_bias(bias, code):
    setup = measured(biased(bias))
    line = key_warning(code, coded_layers(*setup, code))
    errors = score_errors(coded_layers(*setup, code))
    assert line is not None
    layer, head = divmod(int(errors.argmax()), 2)
    assert line.startswith(f"layer {layer}, KV head {head}")
    assert f"by {errors.max():.2g} nats rms" in line
    assert "\n" not in line


def test_the_whole_line(caplog):
    setup = measured(biased(100))
    code = CacheCode("balanced", 5, 5)
    errors = score_errors(coded_layers(*setup, code))
    layer, kv_head = divmod(int(errors.argmax()), 2)
    with caplog.at_level(logging.WARNING, "kvtq_hw"):
        warn_of_losses(*setup, code)
    (record,) = caplog.records
    head, _, tail = record.getMessage().partition(" nats rms, ")
    assert head == (
        f"model 'qwen2', layer {layer}, KV head {kv_head} (4 such heads in all): its keys are so "
        "large where no query reads that code 'balanced:5/5' moves its attention scores by "
        f"{errors.max():.2g}"
    )
    times, _, rest = tail.partition(" ")
    assert int(times) > 5
    assert rest == (
        "times as far as usual; measure what is lost with kvtq-hw eval, or give keys more digits"
    )


def test_every_layer_is_measured_in_its_own_code():
    setup = measured(family_model("qwen2"))
    table = CodeTable("by layer", (CacheCode("balanced", 1, 1), CacheCode("balanced", 4, 1)))
    errors = score_errors(coded_layers(*setup, table))
    for layer, code in enumerate(table.codes):
        assert torch.equal(errors[layer], score_errors(coded_layers(*setup, code))[layer])
    assert errors[0].min() > 5 * errors[1].max()


def test_score_errors_by_hand():
    """Query by query, from the model's own projections."""
    language_model, conditioning, config = measured(family_model("opt"))  # no rotary embedding
    code = CODES[2]
    model = language_model.model
    ids = language_model.tokenizer(documentation_text()[:3000]).input_ids[:128]
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[0]
    block = model.model.decoder.layers[0]
    with torch.no_grad():
        states = block.self_attn_layer_norm(states)[0]
        queries = block.self_attn.q_proj(states).view(128, 4, 8) / math.sqrt(8)
        keys = block.self_attn.k_proj(states).view(128, 4, 8)
    errors = coding_errors(config, code, "key", keys.transpose(0, 1), conditioning[0])
    found = score_errors(coded_layers(language_model, conditioning, config, code))[0]
    for head in range(4):
        total = 0.0
        for i in range(8, 128):
            query = queries[i, head].double()
            scores = [float(query @ keys[j, head].double()) for j in range(i + 1)]
            moved = [float(query @ errors[head, j]) for j in range(i + 1)]
            largest = max(scores)
            weights = [math.exp(score - largest) for score in scores]
            share = [weight / sum(weights) for weight in weights]
            mean = sum(p * e for p, e in zip(share, moved, strict=True))
            total += sum(p * (e - mean) ** 2 for p, e in zip(share, moved, strict=True))
        assert found[head].item() == pytest.approx(math.sqrt(total / 120), rel=1e-4)


def test_commands_warn(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("golden.llm.calibration.DEFAULT_TOKENS", 60)
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE, attention_bias=True))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias[[1, 10]] = 600
    model.save_pretrained("model")
    tiny_model().tokenizer.save_pretrained("model")
    Path("text.txt").write_text(prompt(150, seed=9))
    chosen = ["--model", "./model"]
    size = ["--text", "text.txt", "--context", "40", "--segments", "1", "--code", "balanced:3/2"]
    for command in (
        ["calibrate", *chosen, "--text", "text.txt", "--tokens", "60", "-o", "c.safetensors"],
        ["decode", *chosen, "--prompt", prompt(9), "--max-new-tokens", "2"],
        ["eval", *chosen, *size],
    ):
        caplog.clear()
        assert run(command) == 0
        (record,) = [record for record in caplog.records if record.name == "kvtq_hw"]
        assert record.getMessage().startswith("model './model', layer ")
        assert " nats rms, " in record.getMessage()
