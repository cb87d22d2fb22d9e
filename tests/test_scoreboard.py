"""Packing of payloads, stall patterns, and the scoreboard's verdicts."""

import re
from itertools import islice
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import signed, unsigned
from amaranth.lib import data, enum

from sim.bench.scoreboard import Mismatch, Scoreboard
from sim.bench.streams import STALLS, pack, stall_pattern, unpack


class Color(enum.Enum, shape=2):
    RED = 1
    BLUE = 2


class Pair(data.Struct):
    low: 1
    high: signed(3)


LAYOUT = data.StructLayout(
    {
        "values": data.ArrayLayout(signed(5), 3),
        "pairs": data.ArrayLayout(Pair, 2),
        "none": unsigned(0),
        "color": Color,
    }
)
PAYLOAD = {
    "values": [-16, 0, 15],
    "pairs": [{"low": 1, "high": -4}, {"low": 0, "high": 3}],
    "none": 0,
    "color": 2,
}


def test_pack_puts_the_first_field_lowest() -> None:
    pairs = (0b011_0 << 4) | 0b100_1
    assert pack(LAYOUT, PAYLOAD) == (2 << 23) | (pairs << 15) | (15 << 10) | (0 << 5) | 0b10000
    assert pack(LAYOUT, {**PAYLOAD, "color": Color.BLUE}) == pack(LAYOUT, PAYLOAD)


def test_pack_is_what_amaranth_packs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        payload = unpack(LAYOUT, int(rng.integers(1 << 23)) | 1 << 23)
        assert pack(LAYOUT, payload) == LAYOUT.const(payload).as_bits()
        assert pack(LAYOUT, {**payload, "values": pack(LAYOUT, payload) & 0x7FFF}) == pack(
            LAYOUT, payload
        )


def test_unpack_inverts_pack() -> None:
    assert unpack(LAYOUT, pack(LAYOUT, PAYLOAD)) == PAYLOAD
    assert [unpack(signed(3), pack(signed(3), n)) for n in range(-4, 4)] == list(range(-4, 4))


@pytest.mark.parametrize(("shape", "value"), [(unsigned(3), 8), (signed(3), 4), (unsigned(3), -1)])
def test_pack_refuses_what_does_not_fit(shape: Any, value: int) -> None:
    with pytest.raises(ValueError, match=f"^payload {value} does not fit "):
        pack(shape, value)


def test_stall_patterns_differ_in_how_often_they_go() -> None:
    rate = {
        name: np.mean(list(islice(stall_pattern(name, np.random.default_rng(1)), 4000)))
        for name in STALLS
    }
    assert rate["none"] == 1
    assert rate["slow"] == 0.2
    assert 0.45 < rate["random"] < 0.55
    assert 0.4 < rate["bursts"] < 0.6


def test_stall_pattern_is_repeatable() -> None:
    first, second = (
        list(islice(stall_pattern("bursts", np.random.default_rng(7)), 200)) for _ in range(2)
    )
    assert first == second


def test_unknown_stall_pattern() -> None:
    message = "stall pattern must be one of none, random, bursts, slow, not 'often'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        next(stall_pattern("often", np.random.default_rng(1)))


# --- scoreboard -----------------------------------------------------------------------------------


def board(*payloads: Any) -> Scoreboard:
    return Scoreboard("o", LAYOUT, payloads)


def verdict(scoreboard: Scoreboard, *payloads: Any) -> str:
    """The message with which a scoreboard ends; empty when all is well."""
    try:
        scoreboard.finish([pack(LAYOUT, payload) for payload in payloads])
    except Mismatch as mismatch:
        return str(mismatch)
    return ""


def test_equal() -> None:
    assert verdict(board(PAYLOAD, PAYLOAD), PAYLOAD, PAYLOAD) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [-16, 1, 14]}, "o[1].values[1] is 1, expected 0"),
        (
            {"pairs": [{"low": 1, "high": -4}, {"low": 0, "high": -1}]},
            "o[1].pairs[1].high is -1, expected 3",
        ),
        ({"color": 1}, "o[1].color is 1, expected 2"),
    ],
)
def test_mismatch_names_the_first_field(change: dict[str, Any], message: str) -> None:
    assert verdict(board(PAYLOAD, PAYLOAD), PAYLOAD, {**PAYLOAD, **change}) == message


def test_fields_left_out_are_not_compared() -> None:
    some = {"values": [-16, 0, 15], "pairs": [{"low": 1}, {"high": 3}]}
    other = {"pairs": [{"low": 1, "high": 2}, {"low": 1, "high": 3}], "color": 1}
    assert verdict(board(some), {**PAYLOAD, **other}) == ""
    wrong = {**PAYLOAD, "pairs": [{"low": 0, "high": -4}, {"low": 0, "high": 3}]}
    assert verdict(board(some), wrong) == "o[0].pairs[0].low is 0, expected 1"


def test_missing() -> None:
    assert verdict(board(PAYLOAD, PAYLOAD), PAYLOAD) == "o: 1 of 2 expected payloads came"


def test_extra() -> None:
    message = verdict(board(PAYLOAD), PAYLOAD, {**PAYLOAD, "color": 1})
    assert message.startswith("o: 2 payloads came, 1 were expected; the first extra one is {")
    assert "'color': 1" in message


def test_nothing_compared() -> None:
    assert verdict(board()) == "o: nothing was compared"


def test_compare_goes_on_where_it_was() -> None:
    scoreboard = board(PAYLOAD, PAYLOAD)
    bits = pack(LAYOUT, PAYLOAD)
    scoreboard.compare([bits])
    assert (scoreboard.compared, scoreboard.complete) == (1, False)
    with pytest.raises(Mismatch, match=r"^o\[1\]\.values\[0\] is -15, expected -16$"):
        scoreboard.compare([bits, bits ^ 1])
