"""The allocator: exact within its budget, and a budget that is what it says."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from test_spread import parts
from tiny_model import prompt, save_tiny_model, tiny_model

from golden.attend.attention import ATTENTION
from golden.attend.backends import FloatBackend, GoldenBackend
from golden.llm.calibration import Calibration, calibrate
from golden.llm.decoding import decode, make_cache
from golden.llm.sampling import sample_tokens
from golden.study.allocator import (
    Budget,
    _masks,
    allocate,
    bits_budget,
    code_table,
    cycles_budget,
    measure_sensitivity,
)
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.cycle_model import bound_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import Tiers

TINY = load_config("tiny")
CODE = CacheCode.parse("balanced:1/1,sinks=2,window=5,feedback")
TEXT = prompt(200, seed=7)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("costs", [(1,) * 5, (7,) * 5, (8, 8, 3, 3, 8), (5, 2, 0, 9, 4)])
def test_allocation_is_the_best_of_all(seed, costs):
    losses = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed))

    def loss(choice):
        return sum(losses[index, n - 1].item() for index, n in enumerate(choice))

    choices = list(itertools.product((1, 2, 3), repeat=5))
    for most in range(100 + sum(costs), 104 + 3 * sum(costs), 3):
        budget = Budget(costs, 100, most)
        spent = {
            choice: 100 + sum(c * n for c, n in zip(costs, choice, strict=True))
            for choice in choices
        }
        found = allocate(losses, budget)
        assert budget.spent(found) == spent[tuple(found)] <= most
        assert loss(found) == pytest.approx(min(loss(c) for c in choices if spent[c] <= most))


def test_equal_losses_take_the_fewest_digits():
    assert allocate(torch.ones(4, 5), Budget((1,) * 4, 0, 20)) == [1] * 4
    free = torch.tensor([[4.0, 2, 1, 1, 1]])
    assert allocate(free, Budget((0,), 9, 9)) == [3]


def test_layers_of_two_kinds_are_quick():
    """As many as in the largest hybrids, at a million tokens: sums of costs in the millions."""
    losses = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)).sort(1).values.flip(1)
    costs = (52 * 480,) * 160 + (52 * 1_048_540,) * 40
    budget = Budget(costs, 0, 2 * sum(costs))
    digits = allocate(losses, budget)
    spent = budget.spent(digits)
    assert spent <= budget.most
    # no digit more, each of which would help
    assert all(spent + c > budget.most for c, n in zip(costs, digits, strict=True) if n < 5)


def test_too_small_a_budget():
    message = "most: 24 is not allowed; one digit in each of 5 tensors costs 25"
    with pytest.raises(ValueError, match=f"^{message}$"):
        allocate(torch.zeros(5, 3), Budget((4,) * 5, 5, 24))


def test_a_budget_of_other_tensors():
    with pytest.raises(ValueError, match="zip"):
        allocate(torch.zeros(4, 3), Budget((1,) * 5, 0, 24))


WIDE = TINY.replace(max_context=1024)
FULL = (None, None)
HYBRID = (12, None)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(tiny_model(), TEXT, tokens=50)


def stored_bits(
    calibration: Calibration,
    digits: list[int],
    tokens: int,
    windows: tuple[int | None, int | None] = FULL,
) -> float:
    """Bits per element of a cache that holds so many tokens, by storing them and counting."""
    table = code_table("t", CODE, digits, windows)
    cache = make_cache(WIDE, table, calibration, GoldenBackend(), windows)
    for layer in range(len(windows)):
        cache.update(*torch.randn(2, 1, 2, tokens, 8), layer)
    return cache.bits_per_element()


def spread_evenly(total: int) -> list[int]:
    """So many digits in four tensors."""
    return [total // 4 + (index < total % 4) for index in range(4)]


@pytest.mark.parametrize(
    ("tokens", "bits", "digits"),
    # eight elements in two bytes a digit and a byte of scale; seven tokens in five digits
    [(40, 5.0, 5), (40, 9.0, 15), (1024, 3.5, 4), (1024, 5.0, 7), (1024, 9.0, 15)],
)
def test_bits_buy_the_most_digits_that_fit(
    calibration: Calibration, tokens: int, bits: float, digits: int
) -> None:
    budget = bits_budget(WIDE, CODE, FULL, bits, tokens)
    affordable, one_more = spread_evenly(digits), spread_evenly(digits + 1)
    assert budget.spent(affordable) <= budget.most < budget.spent(one_more)
    assert stored_bits(calibration, affordable, tokens) <= bits
    assert stored_bits(calibration, one_more, tokens) > bits


@pytest.mark.parametrize("windows", [FULL, HYBRID])
@pytest.mark.parametrize("tokens", [9, 12, 13, 40, 1024])
def test_a_cache_stores_what_is_spent(
    calibration: Calibration, windows: tuple[int | None, int | None], tokens: int
) -> None:
    elements = sum(2 * 8 * min(tokens, window or tokens) for window in windows)
    budget = bits_budget(WIDE, CODE, windows, 10.5, tokens)
    assert budget.most == 21 * elements // 16
    losses = torch.rand(4, 5, generator=torch.Generator().manual_seed(tokens)).sort(1).values
    for digits in ([1, 1, 1, 1], [5, 2, 1, 3], [1, 3, 4, 2], allocate(losses.flip(1), budget)):
        bits = stored_bits(calibration, digits, tokens, windows)
        assert bits == 8 * budget.spent(digits) / elements
    assert bits <= 10.5


def test_digits_of_a_layer_with_a_sliding_window_cost_less() -> None:
    budget = bits_budget(WIDE, CODE, HYBRID, 7.0, 40)
    # two bytes a digit, of seven tokens behind the window of five, or of all but seven tokens
    assert budget.costs == (14, 14, 66, 66)
    budget = cycles_budget(TINY, CODE, HYBRID, 3, 99_999, 40)
    # three KV heads, two slices a digit
    assert budget.costs == (42, 42, 198, 198)


@pytest.mark.parametrize("tokens", [6, 7, 40, 1024])
def test_bits_that_hold_five_digits_of_each_tensor_hold_no_more(
    calibration: Calibration, tokens: int
) -> None:
    """Eleven bits are five digits and a scale, for all tokens; without a body digits are free."""
    assert stored_bits(calibration, [5] * 4, tokens) == 11
    losses = torch.arange(5, 0, -1).repeat(4, 1)
    for bits in (11.0, 100.0):
        assert allocate(losses, bits_budget(WIDE, CODE, FULL, bits, tokens)) == [5] * 4


@pytest.mark.parametrize(
    ("tokens", "windows", "bits", "least"),
    # where all tokens are in tiers, the tiers alone are too much
    [
        (6, FULL, 9.0, "11"),
        (7, FULL, 10.9, "11"),
        (40, FULL, 4.3, "4.4"),
        (1024, FULL, 3.0, "3.055"),
        (40, HYBRID, 4.8, "4.846"),  # of 832 elements
    ],
)
def test_bits_that_are_too_few(
    calibration: Calibration,
    tokens: int,
    windows: tuple[int | None, int | None],
    bits: float,
    least: str,
) -> None:
    message = (
        f"bits: {bits} is too small for {CODE} at {tokens} tokens; allowed is at least {least}"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        bits_budget(WIDE, CODE, windows, bits, tokens)
    found = stored_bits(calibration, [1] * 4, tokens, windows)
    assert found == pytest.approx(float(least), rel=5e-4)


@pytest.mark.parametrize(("tokens", "cycles", "digits"), [(100, 8000, 12), (100, 10000, 16)])
def test_cycles_buy_the_most_digits_that_fit(tokens: int, cycles: int, digits: int) -> None:
    """Three KV heads of two layers; seven tokens in five digits, two slices per plane."""
    budget = cycles_budget(TINY, CODE, FULL, 3, cycles, tokens)

    def bound(count: int) -> int:
        body = 3 * bound_cycles(TINY, tokens - 7, count, 0)
        return body + 3 * 2 * bound_cycles(TINY, 7, 5, 5)

    for count in (digits, digits + 1):
        assert budget.spent(spread_evenly(count)) == bound(count)
    assert bound(digits) <= cycles < bound(digits + 1)


@pytest.mark.parametrize(("tokens", "cycles", "least"), [(100, 10, 3072), (7, 839, 840)])
def test_cycles_that_are_too_few(tokens: int, cycles: int, least: int) -> None:
    message = f"cycles: {cycles} is too small for {CODE} at {tokens} tokens; allowed is at least "
    with pytest.raises(UserError, match=f"^{re.escape(message)}{least}$"):
        cycles_budget(TINY, CODE, FULL, 3, cycles, tokens)


def test_cycles_of_an_engine_that_takes_several_planes_per_slice() -> None:
    several = TINY.replace(value_planes_per_cycle=2)
    message = (
        "cycles: tiny takes 1 planes of keys and 2 of values per cycle; allowed is one of each"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        cycles_budget(several, CODE, FULL, 3, 8000, 100)


def test_a_code_with_a_sliding_window_that_the_model_has_not() -> None:
    code = CacheCode.parse("balanced:1/1,sliding=12")
    assert bits_budget(WIDE, code, (12, 12), 7.0, 40).costs == (24,) * 4
    with pytest.raises(UserError, match="layer 1 of the model has no sliding window"):
        bits_budget(WIDE, code, HYBRID, 7.0, 40)


def test_the_table_of_a_hybrid() -> None:
    code = CacheCode.parse("balanced:1/1,sinks=2,window=15")
    table = code_table("t", code, [1, 2, 3, 4], HYBRID)
    codes = ("balanced:1/2,window=12,sliding=12", "balanced:3/4,sinks=2,window=15")
    assert table.for_layers(HYBRID) == tuple(map(CacheCode.parse, codes))
    assert "sliding = [12, 0]\n" in table.to_toml()
    assert "sliding" not in code_table("t", code, [1, 2, 3, 4], FULL).to_toml()
    alike = code_table("t", CacheCode.parse("balanced:1/1,sliding=9"), [1, 2, 3, 4], (9, 9))
    assert 'code = "balanced:1/2"' in alike.to_toml()
    assert "sliding = [9, 9]\n" in alike.to_toml()


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


@pytest.mark.parametrize("sliding", [None, 24])
def test_sensitivity_is_the_divergence_of_one_short_tensor(sliding):
    """Within a third of the divergence through the cache, where it is small.

    Three digits in the body of one tensor, five everywhere else, over the same texts.
    """
    language_model = tiny_model(sliding=sliding)
    calibration = calibrate(language_model, TEXT, tokens=50)
    wide = TINY.replace(max_context=256)
    code = CacheCode.parse("balanced:1/1,sinks=2,window=3,feedback")
    tokens = 4096
    found = measure_sensitivity(language_model, calibration, wide, code, tokens)
    texts = sample_tokens(language_model, tokens, 256, seed=1)

    def predictions(codes: list[CacheCode], ids: torch.Tensor) -> torch.Tensor:
        table, windows = CodeTable("t", tuple(codes)), language_model.windows
        cache = make_cache(wide, table, calibration, FloatBackend(), windows)
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


def test_a_layer_without_a_body_has_no_loss():
    """The first layer's sliding window is no longer than the window of the code."""
    language_model = tiny_model(sliding=5)
    calibration = calibrate(language_model, TEXT, tokens=50)
    found = measure_sensitivity(language_model, calibration, TINY, CODE, 256)
    assert not found.losses()[:2].any()
    assert (found.losses()[2:, :4] > 0).all()


def masks_one_by_one(tiers: Tiers, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each query in a context of its own: its tokens in the order of their arrival."""
    seen, body = torch.zeros(2, tokens, tokens, dtype=torch.bool)
    for query in range(tokens):
        stored = parts(tiers, query + 1)
        for token, part in enumerate(stored, query + 1 - len(stored)):
            seen[query, token] = True
            body[query, token] = part == "body" and token < query
    return seen, body


@pytest.mark.parametrize("sliding", [None, 1, 4, 6, 9, 40])
@pytest.mark.parametrize(("sinks", "window"), [(0, 0), (2, 0), (0, 3), (2, 4), (30, 2)])
def test_what_queries_see_in_the_body(sliding, sinks, window):
    tiers = Tiers(sinks, window, sliding)
    for found, expected in zip(
        _masks(tiers, 20, torch.device("cpu")), masks_one_by_one(tiers, 20), strict=True
    ):
        assert torch.equal(found, expected)


def test_command_writes_a_table_that_a_model_decodes_with(tmp_path, monkeypatch, capsys):
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
    assert run([*arguments, "--bits", "5", "--json", str(tmp_path / "r.json")]) == 0
    loaded = CodeTable.load(table)
    assert len(loaded.codes) == 2
    report = json.loads((tmp_path / "r.json").read_text())
    digits = [digit for code in loaded.codes for digit in (code.key_digits, code.value_digits)]
    assert report["digits"] == digits
    assert 0 < report["budget_spent"] <= 1 and report["expected_kld"] > 0
    decode(
        tiny_model(),
        prompt(9),
        3,
        make_cache(TINY, loaded, calibrate(tiny_model(), TEXT, tokens=50), GoldenBackend()),
    )
    assert run(arguments) == 1
    assert run([*arguments, "--bits", "5", "--cycles", "9"]) == 1
    assert "give exactly one of --bits and --cycles" in capsys.readouterr().err


def test_command_on_a_hybrid_and_an_engine_of_two_planes(tmp_path, monkeypatch, capsys):
    """The table says the sliding windows, and has no more digits than the engine has planes."""
    from golden.llm import calibration

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 60)
    folder = save_tiny_model(tmp_path / "model", sliding=20)
    table, preset = tmp_path / "table.toml", tmp_path / "two.toml"
    preset.write_text(
        'name = "two"\nhead_dim = 8\nquery_group = 2\nlanes = 4\nmax_context = 256\n'
        "max_planes = 2\n"
    )
    arguments = ["allocate", "--preset", str(preset), "--model", str(folder), "--tokens", "64"]
    arguments += ["--context", "100", "-o", str(table)]
    assert run([*arguments, "--code", "balanced:1/1,window=4", "--bits", "100"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"8 digits for 4 tensors, 5\.\d% of the budget spent, expected", printed)
    loaded = CodeTable.load(table)
    assert loaded.windows == (20, None)
    assert [(code.key_digits, code.value_digits) for code in loaded.codes] == [(2, 2)] * 2
    decode(
        tiny_model(sliding=20),
        prompt(30),
        3,
        make_cache(
            load_config(preset),
            loaded,
            calibrate(tiny_model(sliding=20), TEXT, tokens=50),
            GoldenBackend(),
            (20, None),
        ),
    )
    assert run([*arguments, "--code", "balanced:1/1,sliding=20", "--bits", "100"]) == 1
    assert "layer 1 of the model has no sliding window" in capsys.readouterr().err
