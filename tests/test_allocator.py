"""The allocator: exact within its budget, and a budget that is what it says."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_model import prompt, tiny_model

from golden.allocator import (
    allocate,
    code_table,
    digits_for_bits,
    digits_for_cycles,
    measure_sensitivity,
)
from golden.attention import ATTENTION
from golden.backends import FloatBackend, GoldenBackend
from golden.calibration import calibrate
from golden.decoding import decode, make_cache
from golden.sampling import sample_tokens
from kvtq_hw.cli import run
from kvtq_hw.codes import CacheCode, CodeTable
from kvtq_hw.config import load_config
from kvtq_hw.cycle_model import bound_cycles
from kvtq_hw.errors import UserError

TINY = load_config("tiny")
CODE = CacheCode.parse("balanced:1/1,sinks=2,window=5,feedback")
TEXT = prompt(200, seed=7)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [5, 7, 11, 15, 99])
def test_allocation_is_the_best_of_all(seed, digits):
    losses = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed))
    found = allocate(losses, digits)

    def loss(choice):
        return sum(losses[index, n - 1].item() for index, n in enumerate(choice))

    assert sum(found) <= digits
    choices = itertools.product((1, 2, 3), repeat=5)
    assert loss(found) == pytest.approx(min(loss(c) for c in choices if sum(c) <= digits))


def test_too_few_digits():
    with pytest.raises(ValueError, match=r"^digits: 4 is not allowed; 5 tensors need at least 5$"):
        allocate(torch.zeros(5, 3), 4)


@pytest.mark.parametrize("tokens", [6, 40, 1024])
@pytest.mark.parametrize("bits", [9.0, 5.0, 11.5])
def test_digits_for_bits_are_the_most_that_fit(tokens, bits):
    """By storing tokens and counting bytes."""
    layers = 2
    conditioning = calibrate(tiny_model(), TEXT, tokens=50)
    wide = TINY.replace(max_context=1024)

    def measured(digits: list[int]) -> float:
        cache = make_cache(wide, code_table("t", CODE, digits), conditioning, GoldenBackend())
        for layer in range(layers):
            cache.update(*torch.randn(2, 1, 2, tokens, 8), layer)
        return cache.bits_per_element()

    try:
        digits = digits_for_bits(wide, CODE, layers, bits, tokens)
    except UserError as error:
        assert measured([1] * 4) > bits
        assert str(error).startswith(f"--bits: {bits} is too small for {CODE} at {tokens} tokens")
        return
    spread = [digits // 4 + (index < digits % 4) for index in range(4)]
    if tokens > 7 and digits < 20:
        assert measured(spread) <= bits
        assert measured([spread[0] + 1, *spread[1:]]) > bits


def test_digits_for_cycles_are_the_most_that_fit():
    tokens, tier = 100, 7
    for cycles in (8000, 10000):
        digits = digits_for_cycles(TINY, CODE, 2, 3, cycles, tokens)

        def bound(n):
            return 3 * bound_cycles(TINY, tokens - tier, n, 0) + 3 * 2 * bound_cycles(
                TINY, tier, 5, 5
            )

        assert bound(digits) <= cycles < bound(digits + 1)
    with pytest.raises(UserError, match=r"^--cycles: 10 is too small for balanced:1/1,sinks=2,wi"):
        digits_for_cycles(TINY, CODE, 2, 3, 10, tokens)
    several = TINY.replace(value_planes_per_cycle=2)
    with pytest.raises(UserError, match=r"^--cycles: tiny takes 1 planes of keys and 2 of values"):
        digits_for_cycles(several, CODE, 2, 3, 8000, tokens)


def test_sensitivity_falls_with_digits():
    language_model = tiny_model()
    calibration = calibrate(language_model, TEXT, tokens=50)
    done = []
    found = measure_sensitivity(language_model, calibration, TINY, CODE, 600, done.append)
    assert done == [256, 256, 88]  # the tiny model has 256 positions
    for losses in (found.keys, found.values):
        assert losses.shape == (2, 5)
        assert (losses[:, :4] > 2 * losses[:, 1:]).all()
        assert not losses[:, 4].any()
    assert torch.equal(found.losses()[2], found.keys[1])


def test_sensitivity_is_the_divergence_of_one_short_tensor():
    """Within a third of the divergence through the cache, where it is small.

    Three digits in the body of one tensor, five everywhere else, over the same texts.
    """
    language_model = tiny_model()
    calibration = calibrate(language_model, TEXT, tokens=50)
    wide = TINY.replace(max_context=256)
    code = CacheCode.parse("balanced:1/1,sinks=2,window=3,feedback")
    tokens = 4096
    found = measure_sensitivity(language_model, calibration, wide, code, tokens)
    texts = sample_tokens(language_model, tokens, 256, seed=1)

    def predictions(codes: list[CacheCode], ids: torch.Tensor) -> torch.Tensor:
        cache = make_cache(wide, CodeTable("t", tuple(codes)), calibration, FloatBackend())
        with language_model.attending_with(ATTENTION), torch.inference_mode():
            return language_model.model(ids[None], past_key_values=cache).logits[0].log_softmax(-1)

    full = [code.with_digits(5, 5)] * 2
    for layer in range(2):
        for which, losses in ((0, found.keys), (1, found.values)):
            codes = list(full)
            codes[layer] = code.with_digits(*((3, 5) if which == 0 else (5, 3)))
            divergence = 0.0
            for ids in texts:
                reference, short = predictions(full, ids), predictions(codes, ids)
                divergence += (reference.exp() * (reference - short)).sum().item()
            ratio = losses[layer, 2].item() / (divergence / tokens)
            assert 2 / 3 < ratio < 3 / 2, (layer, which, ratio)


def test_command_writes_a_table_that_a_model_decodes_with(tmp_path, monkeypatch, capsys):
    from tiny_model import save_tiny_model

    from golden import calibration

    monkeypatch.setattr(calibration, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 60)
    folder = save_tiny_model(tmp_path / "model")
    table = tmp_path / "table.toml"
    preset = tmp_path / "wide.toml"
    preset.write_text(
        'name = "wide"\nhead_dim = 8\nquery_group = 2\nlanes = 4\nmax_context = 256\n'
    )
    arguments = ["allocate", "--preset", str(preset), "--model", str(folder), "--tokens", "64"]
    arguments += ["--context", "100", "--code", "balanced:1/1,window=4", "-o", str(table)]
    assert run([*arguments, "--bits", "5"]) == 0
    loaded = CodeTable.load(table)
    assert len(loaded.codes) == 2
    decode(
        tiny_model(),
        prompt(9),
        3,
        make_cache(TINY, loaded, calibrate(tiny_model(), TEXT, tokens=50), GoldenBackend()),
    )
    assert run(arguments) == 1
    assert run([*arguments, "--bits", "5", "--cycles", "9"]) == 1
    assert "give exactly one of --bits and --cycles" in capsys.readouterr().err
