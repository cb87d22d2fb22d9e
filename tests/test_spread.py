"""Tiers of a context: every count and sum against a walk over the tokens, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.study.allocator import bits_budget, cycles_budget
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.cycle_model import code_bound, code_job_cycles, token_job_cycles, token_slices
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import bits_per_element, cache_bytes, vector_bytes
from kvtq_hw.contract.tiers import NO_TIERS, Tiers
from kvtq_hw.estimates.candidates import IntegerLayer
from kvtq_hw.estimates.traffic import ModelShape, traffic

TINY = load_config("tiny")
COUNTS = st.integers(0, 12)
TIERS = st.builds(Tiers, COUNTS, COUNTS, st.none() | st.integers(1, 20))
TOKENS = st.integers(0, 40)
DIGITS = st.integers(1, 5)
CODES = st.builds(
    CacheCode, st.sampled_from(("balanced", "residual")), DIGITS, DIGITS, TIERS, DIGITS
)
# its planes per cycle divide no number of digits
WIDE = TINY.replace(key_planes_per_cycle=3, value_planes_per_cycle=2)
CONFIGS = st.sampled_from((TINY, WIDE, TINY.replace(max_planes=5, packing="2bit")))

every = settings(max_examples=200, deadline=None, derandomize=True)


def memory(tiers: Tiers, tokens: int) -> dict[tuple[str, int], int]:
    """The token in each slot that attention may read, by moving tokens one after the other.

    Nothing is counted here: each token comes, the token that it pushes out of the window takes the
    body's next free slot, and a token that has left the sliding window frees its slot.
    """
    held: dict[tuple[str, int], int] = {}
    window: list[int] = []  # slots, oldest first
    for token in range(tokens):
        if tiers.sliding is not None and token >= tiers.sliding:
            gone = next(slot for slot, old in held.items() if old == token - tiers.sliding)
            del held[gone]
            if gone[0] == "window":
                window.remove(gone[1])
        if token < tiers.sinks:
            held["sinks", token] = token
            continue
        moving = [] if tiers.window else [token]
        if tiers.window:
            slot = free(held, "window", tiers.window)
            if slot is None:
                slot = window.pop(0)
                moving = [held.pop(("window", slot))]
            held["window", slot] = token
            window.append(slot)
        for old in moving:
            held["body", free(held, "body", tokens) or 0] = old
    return held


def free(held: dict[tuple[str, int], int], part: str, slots: int) -> int | None:
    """The first slot of a part that holds no token."""
    return next((slot for slot in range(slots) if (part, slot) not in held), None)


def parts(tiers: Tiers, tokens: int) -> list[str]:
    """The part of each stored token, in the order of the tokens."""
    held = {token: part for (part, _), token in memory(tiers, tokens).items()}
    return [held[token] for token in sorted(held)]


@every
@given(TIERS, TOKENS)
def test_spread_counts_the_tokens_of_each_part(tiers, tokens):
    found = parts(tiers, tokens)
    spread = tiers.spread(tokens)
    assert spread[:3] == tuple(found.count(name) for name in ("sinks", "body", "window"))
    assert tiers.body(tokens) == spread.body
    assert found == ["sinks"] * spread.sinks + ["body"] * spread.body + ["window"] * spread.window
    assert spread.tokens == min(tokens, tiers.sliding or tokens)


@every
@given(TIERS, TOKENS)
def test_slots(tiers, tokens):
    """Attention finds every visible token in its slot, and no other; a short context in order."""
    held, spread = memory(tiers, tokens), tiers.spread(tokens)
    for (part, slot), token in held.items():
        assert slot == {"sinks": int, "body": tiers.body_slot, "window": tiers.window_slot}[part](
            token
        )
    order = [held["sinks", spread.first_sink + n] for n in range(spread.sinks)]
    order += [held["body", n] for n in range(spread.body)]
    order += [
        held["window", (spread.window_start + n) % tiers.window] for n in range(spread.window)
    ]
    assert sorted(order) == sorted(held.values()) == list(range(spread.forgotten, tokens))
    if tokens <= (tiers.sliding or tokens):
        assert order == list(range(tokens))


@every
@given(TIERS, TOKENS.filter(bool))
def test_slots_that_the_newest_token_changes(tiers, tokens):
    held, before = memory(tiers, tokens), memory(tiers, tokens - 1)
    spread = tiers.spread(tokens)
    changed = {place: token for place, token in held.items() if before.get(place) != token}
    entered = {slot: token for (part, slot), token in changed.items() if part == "body"}
    if ("window", tokens - 1) in {(part, token) for (part, _), token in changed.items()}:
        assert changed["window", spread.window_slot] == tokens - 1
    assert list(entered) in ([], [spread.body_slot])
    assert tiers.leaving(tokens) == (bool(entered) and tokens - 1 not in entered.values())


@every
@given(TIERS, TOKENS, st.integers(0, 99), st.integers(0, 99))
def test_numbers_of_tokens_and_their_sum(tiers, tokens, tier, body):
    expected = [body if part == "body" else tier for part in parts(tiers, tokens)]
    assert tiers.per_token(tokens, tier, body) == expected
    assert tiers.total(tokens, tier, body) == sum(expected)


@pytest.mark.parametrize("counts", [{"sinks": -1}, {"window": -1}])
def test_negative_tiers_are_refused(counts):
    [name] = counts
    with pytest.raises(ValueError, match=rf"^{name}: -1 is not allowed; must be at least 0$"):
        Tiers(**counts)


def test_no_tiers():
    assert NO_TIERS.spread(7)[:3] == (0, 7, 0)


# --- who asks -------------------------------------------------------------------------------------


@every
@given(CONFIGS, CODES, st.integers(1, 40))
def test_planes_bytes_and_cycles_of_a_code(config, code, tokens):
    """Token by token: balanced digits in the tier, no more than the engine has planes."""
    tier = min(code.tier, config.max_planes)
    size, slices = 0, {"key": [], "value": []}
    sides = (
        ("key", code.key_digits, config.key_planes_per_cycle),
        ("value", code.value_digits, config.value_planes_per_cycle),
    )
    for side, digits, per_cycle in sides:
        planes = []
        for part in parts(code.tiers, tokens):
            short = part == "body"
            planes.append(digits if short else tier)
            runs = digits if short and code.kind == "residual" else 1
            size += vector_bytes(config, planes[-1], runs)
            slices[side].append(config.slices * token_slices(per_cycle, planes[-1], runs))
        assert code.planes(digits, tokens, config.max_planes) == planes
    assert cache_bytes(config, code, tokens) == size
    assert code_bound(config, code, tokens) == sum(slices["key"] + slices["value"])
    assert code_job_cycles(config, code, tokens) == token_job_cycles(
        config, slices["key"], slices["value"]
    )


@every
@given(st.sampled_from((2, 4, 8)), TIERS, st.integers(1, 40))
def test_bytes_and_slices_of_integers(bits, tiers, tokens):
    layer = IntegerLayer(bits, tiers)
    of_tokens = [bits if part == "body" else 8 for part in parts(tiers, tokens)]
    assert TINY.scale_bits <= 8
    assert layer.bytes(TINY, tokens) == 2 * sum(TINY.head_dim * n // 8 + 1 for n in of_tokens)
    slices = [TINY.slices * max(1, n // bits) for n in of_tokens]
    assert layer.slices(TINY, tokens) == (sum(slices), sum(slices))
    assert layer.cycles(TINY, tokens) == token_job_cycles(TINY, slices, slices)


@every
@given(TIERS, st.integers(1, 40))
def test_bits_are_of_stored_elements(tiers, tokens):
    code = CacheCode("balanced", 3, 1, tiers)
    found = bits_per_element(TINY, code, tokens)
    stored = len(parts(tiers, tokens))
    assert found == 8 * cache_bytes(TINY, code, tokens) / (2 * TINY.head_dim * stored)


WINDOWS = st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=3)


@every
@given(TIERS, WINDOWS, st.integers(1, 40), st.lists(DIGITS, min_size=6, max_size=6))
def test_budgets_are_what_codes_cost(tiers, windows, tokens, digits):
    """Bytes and slices of codes that have these digits, each layer with its own window."""
    code = CacheCode("balanced", 1, 1, tiers.sliding_over(None))
    kv_heads = 3
    digits = digits[: 2 * len(windows)]
    pairs = zip(digits[::2], digits[1::2], strict=True)
    codes = [
        of_layer.with_digits(*pair)
        for of_layer, pair in zip(code.for_layers(windows), pairs, strict=True)
    ]
    stored = sum(len(parts(of_layer.tiers, tokens)) for of_layer in codes)
    elements = 2 * TINY.head_dim * stored
    in_bytes = bits_budget(TINY, code, windows, 100.0, tokens)
    assert in_bytes.spent(digits) == sum(cache_bytes(TINY, each, tokens) for each in codes)
    assert in_bytes.most == int(100.0 * elements / 8)
    in_slices = cycles_budget(TINY, code, windows, kv_heads, 10**6, tokens)
    slices = kv_heads * sum(code_bound(TINY, each, tokens) for each in codes)
    assert in_slices.spent(digits) == slices
    assert in_slices.most == 10**6
    # a budget of what one digit of each tensor costs is enough, and one less is too small
    least = 8 * in_bytes.least / elements
    assert bits_budget(TINY, code, windows, least + 1e-9, tokens).most == in_bytes.least
    with pytest.raises(UserError, match="is too small"):
        bits_budget(TINY, code, windows, least - 1e-9, tokens)
    assert cycles_budget(TINY, code, windows, kv_heads, in_slices.least, tokens) == replace(
        in_slices, most=in_slices.least
    )
    with pytest.raises(UserError, match="is too small"):
        cycles_budget(TINY, code, windows, kv_heads, in_slices.least - 1, tokens)


@every
@given(TIERS, st.integers(1, 40))
def test_traffic_of_a_hybrid(tiers, tokens):
    """The second layer attends to all tokens; all formats store the same tokens."""
    code = CacheCode("balanced", 1, 1, tiers.sliding_over(None))
    shape = ModelShape(2, 3, TINY.head_dim, (tiers.sliding, None))
    fp16, int8, int4, ternary = traffic(shape, tokens, TINY, [code])
    stored = len(parts(tiers, tokens)) + tokens
    elements = 3 * 2 * TINY.head_dim * stored
    assert fp16.cache_bytes == 2 * elements
    assert (fp16.bits_per_element, int8.bits_per_element, int4.bits_per_element) == (16, 10, 6)
    codes = replace(code, tiers=tiers), code
    assert ternary.cache_bytes == 3 * sum(cache_bytes(TINY, each, tokens) for each in codes)
    assert ternary.bits_per_element == 8 * ternary.cache_bytes / elements
