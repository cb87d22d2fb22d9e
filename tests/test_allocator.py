"""The allocator: exact within its budget, and a budget that is what it says."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from tiny_model import prompt, tiny_model

from golden.attend.attention import ATTENTION
from golden.attend.backends import FloatBackend, GoldenBackend
from golden.llm.calibration import Calibration, calibrate
from golden.llm.decoding import decode, make_cache
from golden.llm.sampling import sample_tokens
from golden.study.allocator import (
    allocate,
    code_table,
    digits_for_bits,
    digits_for_cycles,
    measure_sensitivity,
)
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.cycle_model import bound_cycles
from kvtq_hw.contract.errors import UserError

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


WIDE = TINY.replace(max_context=1024)
LAYERS = 2


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(tiny_model(), TEXT, tokens=50)


def stored_bits(calibration: Calibration, digits: list[int], tokens: int) -> float:
    """Bits per element of a cache that holds so many tokens, by storing them and counting."""
    cache = make_cache(WIDE, code_table("t", CODE, digits), calibration, GoldenBackend())
    for layer in range(LAYERS):
        cache.update(*torch.randn(2, 1, 2, tokens, 8), layer)
    return cache.bits_per_element()


@pytest.mark.parametrize(
    ("tokens", "bits", "digits"),
    # eight elements in two bytes a digit and a byte of scale; seven tokens in five digits
    [(40, 5.0, 5), (40, 9.0, 15), (1024, 3.5, 4), (1024, 5.0, 7), (1024, 9.0, 15)],
)
def test_digits_for_bits_are_the_most_that_fit(
    calibration: Calibration, tokens: int, bits: float, digits: int
) -> None:
    assert digits_for_bits(WIDE, CODE, LAYERS, bits, tokens) == digits
    spread = [digits // 4 + (index < digits % 4) for index in range(4)]
    assert stored_bits(calibration, spread, tokens) <= bits
    one_more = [digit + (index == digits % 4) for index, digit in enumerate(spread)]
    assert sum(one_more) == digits + 1
    assert stored_bits(calibration, one_more, tokens) > bits


@pytest.mark.parametrize("tokens", [6, 7, 40, 1024])
def test_bits_that_hold_five_digits_of_each_tensor_hold_no_more(
    calibration: Calibration, tokens: int
) -> None:
    """Eleven bits are five digits and a scale, for all tokens: 20 digits of the body as well."""
    assert stored_bits(calibration, [5] * 4, tokens) == 11
    assert digits_for_bits(WIDE, CODE, LAYERS, 11.0, tokens) == 20
    assert digits_for_bits(WIDE, CODE, LAYERS, 100.0, tokens) == 20


@pytest.mark.parametrize(
    ("tokens", "bits", "least"),
    # where all tokens are in tiers, the tiers alone are too much
    [(6, 9.0, "11"), (7, 10.9, "11"), (40, 4.3, "4.4"), (1024, 3.0, "3.055")],
)
def test_bits_that_are_too_few(
    calibration: Calibration, tokens: int, bits: float, least: str
) -> None:
    message = (
        f"bits: {bits} is too small for {CODE} at {tokens} tokens; allowed is at least {least}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        digits_for_bits(WIDE, CODE, LAYERS, bits, tokens)
    assert stored_bits(calibration, [1] * 4, tokens) == pytest.approx(float(least), rel=5e-4)


@pytest.mark.parametrize(
    ("tokens", "cycles", "digits"), [(100, 8000, 12), (100, 10000, 16), (8, 1000, 20), (7, 840, 20)]
)
def test_digits_for_cycles_are_the_most_that_fit(tokens: int, cycles: int, digits: int) -> None:
    """Three KV heads of two layers; seven tokens in five digits, two slices per plane."""
    assert digits_for_cycles(TINY, CODE, 2, 3, cycles, tokens) == digits

    def bound(count: int) -> int:
        body = 3 * bound_cycles(TINY, tokens - 7, count, 0)
        return body + 3 * 2 * bound_cycles(TINY, 7, 5, 5)

    assert bound(digits) <= cycles
    assert digits == 20 or bound(digits + 1) > cycles


@pytest.mark.parametrize(("tokens", "cycles", "least"), [(100, 10, 3072), (7, 839, 840)])
def test_cycles_that_are_too_few(tokens: int, cycles: int, least: int) -> None:
    message = f"cycles: {cycles} is too small for {CODE} at {tokens} tokens; allowed is at least "
    with pytest.raises(UserError, match=f"^{re.escape(message)}{least}$"):
        digits_for_cycles(TINY, CODE, 2, 3, cycles, tokens)


def test_cycles_of_an_engine_that_takes_several_planes_per_slice() -> None:
    several = TINY.replace(value_planes_per_cycle=2)
    message = (
        "cycles: tiny takes 1 planes of keys and 2 of values per cycle; allowed is one of each"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        digits_for_cycles(several, CODE, 2, 3, 8000, 100)


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

    from golden.llm import calibration

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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
