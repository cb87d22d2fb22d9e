"""A model's attention on the real verilated engine, against the golden model."""

from __future__ import annotations

import pytest
import torch
from decode_command import arguments, report_of
from passes import CODES, PASSES, SLIDING, check_outputs, checked_session, run_passes
from tiny_model import tiny_model

from kvtq_hw.commands.frame.session import on_engine


@pytest.mark.parametrize("code", ["balanced:3/2", "residual:2/3", "balanced:1/5"])
def test_decoding_on_the_engine(tiny_folder, code):
    """Every output of every step equals the golden model's, past several block boundaries."""
    report = report_of(*arguments(tiny_folder, "--max-new-tokens", "12", "--code", code))
    jobs = 11 * 2 * 2  # steps, layers, KV heads
    assert report["outputs_compared"] == jobs * 2 * 8
    assert report["mismatches"] == 0
    assert report["tokens_identical"] is True
    assert report["context"] == 20
    assert report["bound_cycles"] < report["rtl_cycles"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("make", SLIDING.values(), ids=SLIDING)
def test_sliding_windows_on_the_engine(make, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with checked_session(on_engine, make(), code) as session:
        for passes in PASSES:
            run_passes(session, passes)
        check_outputs(session)


def test_anchors_on_the_engine(tmp_path, monkeypatch):
    """Tokens that became anchors are in another place and in more digits, by KV head."""
    monkeypatch.chdir(tmp_path)
    code = "balanced:2/1,sinks=1,window=5,anchors=4"
    with checked_session(on_engine, tiny_model(), code) as session:
        for passes in PASSES:
            cache = run_passes(session, passes)
        check_outputs(session)
    anchored = torch.stack([layer.keys.anchored for layer in cache.layers])
    assert anchored.any() and not torch.equal(anchored[:, :, 0], anchored[:, :, 1])


def test_smollm2_on_the_engine(smollm2_wheel, tmp_path, monkeypatch):
    """The real model, whole layers: three steps, every output of 30 layers and 9 heads."""
    monkeypatch.chdir(tmp_path)
    report = report_of("decode", "--max-new-tokens", "4", "--prompt", "The capital of France is")
    assert report["outputs_compared"] == 3 * 30 * 9 * 64
    assert report["mismatches"] == 0
    assert report["tokens_identical"] is True
    assert "Paris" in report["text"]
