"""Bulk packing of stream payloads, against Amaranth's own layouts."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from sim.verilated.words import pack_words, unpack_words, words_of

LAYOUT = data.StructLayout(
    {
        "heads": data.ArrayLayout(signed(11), 3),
        "digits": data.ArrayLayout(data.StructLayout({"a": 1, "b": unsigned(2)}), 9),
        "none": unsigned(0),
        "flag": 1,
        "wide": signed(40),
    }
)


def fields(count: int) -> dict[str, object]:
    rng = np.random.default_rng(count)
    return {
        "heads": rng.integers(-1024, 1024, (count, 3)),
        "digits": {
            "a": rng.integers(0, 2, (count, 9)),
            "b": rng.integers(0, 4, (count, 9)),
        },
        "none": np.zeros(count, np.int64),
        "flag": rng.integers(0, 2, count),
        "wide": rng.integers(-(1 << 39), 1 << 39, count),
    }


def test_packing_is_amaranths() -> None:
    values = fields(50)
    words = pack_words(LAYOUT, values)
    assert words.shape == (50, words_of(LAYOUT)) == (50, 4)
    for i, row in enumerate(words):
        constant = LAYOUT.const(
            {
                "heads": [int(x) for x in values["heads"][i]],
                "digits": [
                    {"a": int(a), "b": int(b)}
                    for a, b in zip(values["digits"]["a"][i], values["digits"]["b"][i], strict=True)
                ],
                "flag": int(values["flag"][i]),
                "wide": int(values["wide"][i]),
            }
        )
        assert int.from_bytes(row.tobytes(), "little") == constant.as_bits()


def test_unpack_inverts_pack() -> None:
    values = fields(20)
    found = unpack_words(LAYOUT, pack_words(LAYOUT, values))
    for name in ("heads", "flag", "wide"):
        np.testing.assert_array_equal(found[name], values[name])
    for name in ("a", "b"):
        np.testing.assert_array_equal(found["digits"][name], values["digits"][name])


@pytest.mark.parametrize(("width", "words"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_words_of_a_plain_shape(width: int, words: int) -> None:
    assert words_of(unsigned(width)) == words
