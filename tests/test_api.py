"""The functions of `import kvtq_hw`, used as a script for transformers would use them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import prompt, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import kvtq_hw
from golden.attend.attention import ATTENTION
from golden.llm import calibration
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from rtl.blocks import emit_block

ROOT = Path(__file__).resolve().parent.parent
CODE = "balanced:3/2,sinks=2,window=4,feedback"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 60)
    return save_tiny_model(tmp_path / "model")


def test_generate_with_a_stock_model(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = tokenizer(prompt(12), return_tensors="pt")
    outputs = []
    for _ in range(2):  # the second cache reads the calibration that the first one kept
        cache = kvtq_hw.ternary_cache(model, code=CODE)
        kept = list((tmp_path / "cache").rglob("*.safetensors"))
        assert len(kept) == 1
        outputs.append(
            model.generate(**inputs, past_key_values=cache, max_new_tokens=5, do_sample=False)
        )
        assert cache.get_seq_length() == outputs[-1].shape[1] - 1
        assert all(str(layer.code) == CODE for layer in cache.layers)
    assert torch.equal(*outputs)
    assert model.config._attn_implementation == ATTENTION
    model.set_attn_implementation("sdpa")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] == 14


def test_the_example_of_the_page(folder, capsys):
    page = ROOT / "docs" / "commands.md"
    text = page.read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    name = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
    assert name in block
    scope = {"queries": torch.ones(4, 1, 16), "keys": (x := torch.ones(2, 3, 16)), "values": x}
    exec(block.replace(name, repr(str(folder))), scope)
    assert len(capsys.readouterr().out.split()) == 6 + 16
    assert (
        scope["outputs"].shape == (4, 1, 16) and "module kvtq_smollm2_engine(" in scope["verilog"]
    )


def test_what_the_cache_refuses_leaves_the_model_as_it_was(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with pytest.raises(UserError, match=r"^code: 'ternary' "):
        kvtq_hw.ternary_cache(model, code="ternary")
    with pytest.raises(UserError, match=r"none.safetensors'"):
        kvtq_hw.ternary_cache(model, calibration=tmp_path / "none.safetensors")
    model.config.name_or_path = str(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"its tokenizer cannot be loaded .* pass it as tokenizer="):
        kvtq_hw.ternary_cache(model)
    assert model.config._attn_implementation == "sdpa"


def attended(queries, keys, values):
    """Attention in float64, causal for the newest queries."""
    group = queries.shape[0] // keys.shape[0]
    keys, values = (x.double().repeat_interleave(group, 0) for x in (keys, values))
    scores = queries.double() @ keys.mT / queries.shape[-1] ** 0.5
    count, tokens = scores.shape[-2:]
    later = torch.arange(tokens) > torch.arange(tokens - count, tokens)[:, None]
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ values


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("queries", [1, 3, 20])
def test_attention_is_near_to_that_of_floats(queries, scale):
    generator = torch.Generator().manual_seed(queries)
    shapes = (6, queries, 32), (2, 20, 32), (2, 20, 32)
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    exact = attended(q, k, v) * scale
    found, coarse = (
        kvtq_hw.attention(q / scale, k * scale, v * scale, code=code)
        for code in ("balanced:5/5", "balanced:1/1")
    )
    assert found.shape == exact.shape and found.dtype == torch.float32
    assert (found - exact).norm() / exact.norm() < 0.03
    assert (coarse - exact).norm() > 3 * (found - exact).norm()


def test_saturated_scores_are_said(caplog):
    x = torch.ones(1, 2, 16)
    kvtq_hw.attention(x, x, x)
    assert not caplog.records
    kvtq_hw.attention(1000 * x, x, x)
    assert "attention: 3 scores saturated" in caplog.text


def test_attention_without_queries_of_the_newest_tokens_alone_is_the_same():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, 16, generator=generator) for _ in range(3))
    whole, newest = kvtq_hw.attention(q, k, v), kvtq_hw.attention(q[:, -2:], k, v)
    assert torch.equal(whole[:, -2:], newest)


def test_attention_refuses_what_it_cannot_compute():
    x = torch.ones(2, 3, 16)
    with pytest.raises(UserError, match=r"^code: .* needs a calibrated model"):
        kvtq_hw.attention(x, x, x, code="balanced:3/2,feedback")
    with pytest.raises(ValueError, match=r"^queries, keys and values have shapes"):
        kvtq_hw.attention(x, x, x[:, :2])
    with pytest.raises(ValueError, match=r"^3 query heads and 2 KV heads"):
        kvtq_hw.attention(torch.ones(3, 1, 16), x, x)
    with pytest.raises(ValueError, match=r"queries of 4 of 3 tokens; .* 1 to all tokens"):
        kvtq_hw.attention(torch.ones(2, 4, 16), x, x)
    with pytest.raises(ValueError, match=r"^keys or values have an element of inf"):
        kvtq_hw.attention(x, x * torch.inf, x)
    with pytest.raises(UserError, match="head_dim"):
        kvtq_hw.attention(*[torch.ones(2, 3, 7)] * 3)


def test_verilog_is_that_of_the_generator():
    config = load_config("tiny")
    for name in ("tiny", config):
        text = kvtq_hw.generate_verilog(name, "packer", prefix="mine")
        assert text == emit_block("packer", config, "mine")
    assert "module kvtq_tiny_accelerator(" in kvtq_hw.generate_verilog("tiny")
    with pytest.raises(UserError, match="block: 'lanes' is unknown"):
        kvtq_hw.generate_verilog("tiny", "lanes")


def test_importing_is_light():
    """`import kvtq_hw` loads none of the heavy libraries."""
    script = (
        "import kvtq_hw, sys; assert 'attention' in dir(kvtq_hw);"
        "assert not {'torch', 'transformers', 'amaranth', 'numpy', 'click'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'decode'"):
        _ = kvtq_hw.decode


@pytest.mark.parametrize("kind", ["sim.py", "rtl/__init__.py", "golden"])
def test_a_package_that_hides_ours_is_named(kind, tmp_path):
    """A file or folder of the user's beside a script comes first in `sys.path`."""
    place = tmp_path / kind
    (place if not place.suffix else place.parent).mkdir(exist_ok=True, parents=True)
    if place.suffix:
        place.write_text("")
    script = tmp_path / "mine.py"
    script.write_text("import kvtq_hw\nprint(kvtq_hw.generate_verilog('tiny', 'packer'))\n")
    # ours stand in a folder of sys.path; an editable install would find theirs first
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    if place.suffix:
        name = kind.partition("/")[0].removesuffix(".py")
        assert run.returncode and f"package '{name}': Python finds '{place}'" in run.stderr
    else:  # a folder without __init__.py hides nothing
        assert run.returncode == 0, run.stderr


def test_the_command_line_names_it_too(tmp_path, monkeypatch, capsys):
    from kvtq_hw.commands.frame.cli import run

    (tmp_path / "sim.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sim", raising=False)
    assert run(["models"]) == 1
    assert re.search(
        r"error: package 'sim': Python finds .*rename the other", capsys.readouterr().err
    )
