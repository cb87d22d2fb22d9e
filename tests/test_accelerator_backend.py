"""A model on the verilated accelerator: raw vectors in, outputs and memory compared."""

from __future__ import annotations

import pytest
from decode_command import arguments, report_of
from passes import CODES, PASSES, SLIDING, check_outputs, checked_session, run_passes
from tiny_model import tiny_model

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.frame.session import on_accelerator
from sim.backends.accelerator import AcceleratorBackend


def report(folder, *more: str) -> dict[str, object]:
    return report_of(*arguments(folder, *more), backend="rtl")


@pytest.mark.parametrize(
    "code",
    ["balanced:2/1,sinks=2,window=3,feedback", "residual:2/3", "balanced:1/2,window=14,tier=4"],
)
def test_decoding_on_the_accelerator(tiny_folder, code):
    """Every output of every step, and every byte of the memory at the end."""
    found = report(tiny_folder, "--max-new-tokens", "12", "--code", code)
    assert found["outputs_compared"] == 11 * 2 * 2 * 2 * 8  # steps, layers, KV heads, G, D
    assert found["mismatches"] == 0
    assert found["memory_bytes_compared"] > 2 * 2 * 20 * 2 * 3  # more than 3 bytes per vector
    assert found["memory_differences"] == 0
    assert found["tokens_identical"] is True
    assert found["rtl_cycles"] > found["bound_cycles"]


def test_a_prompt_of_one_token_starts_in_an_empty_memory(tiny_folder):
    code = "balanced:3/2,sinks=1,window=2,feedback"
    found = report(tiny_folder, "--prompt", "w5", "--max-new-tokens", "6", "--code", code)
    assert (found["mismatches"], found["memory_differences"]) == (0, 0)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("make", SLIDING.values(), ids=SLIDING)
def test_sliding_windows_on_the_accelerator(make, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with checked_session(on_accelerator, make(), code) as session:
        for passes in PASSES:
            compared, different = session.compare_memory(run_passes(session, passes))
            assert compared > 2 * 2 * 11 * 2 * 3
            assert different == 0
        check_outputs(session)


@pytest.mark.parametrize(
    "code",
    ["balanced:2/1,sinks=1,window=5,anchors=4,feedback", "balanced:1/2,window=3,anchors=40,tier=3"],
)
def test_anchors_on_the_accelerator(code, tmp_path, monkeypatch):
    """The hardware decides as the cache does, from prefills of any size and removed tokens on."""
    monkeypatch.chdir(tmp_path)
    with checked_session(on_accelerator, tiny_model(), code) as session:
        for passes in PASSES:
            cache = run_passes(session, passes)
            compared, different = session.compare_memory(cache)
            assert compared > 2 * 2 * 11 * 2 * 3
            assert different == 0
            assert any(layer.keys.anchored.any() for layer in cache.layers)
        check_outputs(session)


def test_memory_that_differs_is_a_failure(tiny_folder, monkeypatch, capsys):
    compare = AcceleratorBackend.compare_memory

    def spoilt(self, cache):
        self._image.data[5] ^= 1
        return compare(self, cache)

    monkeypatch.setattr(AcceleratorBackend, "compare_memory", spoilt)
    assert run([*arguments(tiny_folder), "--backend", "rtl", "--max-new-tokens", "2"]) == 1
    assert "the memory differs from the golden cache in 1 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("balanced:3/2,scale=lsq", "has scale 'lsq', which the hardware does not compute; allowed"),
        ("balanced:3/2,scale=max", "allowed for balanced codes is absmean"),
    ],
)
def test_codes_that_the_hardware_does_not_compute(tiny_folder, capsys, code, message):
    assert run([*arguments(tiny_folder), "--backend", "rtl", "--code", code]) == 1
    assert message in capsys.readouterr().err
