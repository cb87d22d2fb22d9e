"""Code tables: what is read, what is refused, and that every layer gets its digits."""

from __future__ import annotations

import pytest
import torch
from tiny_model import prompt, tiny_model

from golden.attend.backends import GoldenBackend
from golden.llm.calibration import calibrate
from golden.llm.decoding import decode, make_cache
from kvtq_hw.contract.codes import CacheCode, CodeTable, read_code
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError

TABLE = 'code = "balanced:1/1,window=4"\nkey_digits = [3, 2]\nvalue_digits = [1, 2]\n'


def write(tmp_path, text: str = TABLE) -> str:
    path = tmp_path / "table.toml"
    path.write_text(text)
    return str(path)


def test_a_table_gives_each_layer_its_code(tmp_path):
    table = read_code(write(tmp_path))
    assert isinstance(table, CodeTable)
    expected = tuple(CacheCode.parse(f"balanced:{digits},window=4") for digits in ("3/1", "2/2"))
    assert table.of_layers(2) == expected
    assert table.most_digits == 3
    assert read_code(write(tmp_path, table.to_toml())) == table
    other = read_code(write(tmp_path, TABLE.replace("[3, 2]", "[2, 3]")))
    assert str(table).startswith("table.toml@")
    assert str(other) != str(table)


def test_a_model_decodes_with_a_table(tmp_path):
    language_model = tiny_model()
    calibration = calibrate(language_model, prompt(60), tokens=50)
    table = read_code(write(tmp_path))
    cache = make_cache(load_config("tiny"), table, calibration, GoldenBackend())
    decode(language_model, prompt(9), 6, cache)
    assert [layer.keys.body.digits for layer in cache.layers] == [3, 2]
    assert [layer.values.body.digits for layer in cache.layers] == [1, 2]
    assert torch.tensor([layer.keys.window.tokens for layer in cache.layers]).eq(4).all()


SLIDING = TABLE + "sliding = [8, 0]\n"


def test_a_table_says_the_sliding_windows(tmp_path):
    """With tiers of its own in each layer: the window is cut to the sliding window."""
    table = read_code(write(tmp_path, SLIDING.replace("[8, 0]", "[3, 0]")))
    assert table.windows == (3, None)
    codes = tuple(
        map(CacheCode.parse, ("balanced:3/1,window=3,sliding=3", "balanced:2/2,window=4"))
    )
    assert table.of_layers(2) == table.for_layers((3, None)) == codes
    assert read_code(write(tmp_path, table.to_toml())) == table
    names = {str(read_code(write(tmp_path, text))) for text in (TABLE, SLIDING, table.to_toml())}
    assert len(names) == 3


def test_the_name_of_a_table_without_sliding_windows(tmp_path):
    """Files of results hold such names."""
    assert str(read_code(write(tmp_path))) == "table.toml@01118189"


def test_a_table_without_sliding_windows_takes_the_models(tmp_path):
    table = read_code(write(tmp_path))
    assert table.windows is None
    assert [code.tiers.sliding for code in table.of_layers(2)] == [None, None]
    assert [code.tiers.sliding for code in table.for_layers((None, 9))] == [None, 9]


@pytest.mark.parametrize(
    ("says", "windows", "message"),
    [
        ("[8, 0]", (8, 8), "has no sliding window in layer 1, the model has a sliding window of 8"),
        (
            "[8, 0]",
            (9, None),
            "has a sliding window of 8 tokens in layer 0, the model has a slidin",
        ),
        (
            "[8, 0]",
            (None, None),
            "has a sliding window of 8 tokens in layer 0, the model has no sl",
        ),
        (
            "[0, 0]",
            (None, 8),
            "has no sliding window in layer 1, the model has a sliding window of",
        ),
        ("[8, 0]", (8, None, 8), "has 2 layers; the model has 3"),
    ],
)
def test_a_table_for_other_sliding_windows_is_refused(tmp_path, says, windows, message):
    table = read_code(write(tmp_path, SLIDING.replace("[8, 0]", says)))
    with pytest.raises(UserError, match=rf"^code table 'table\.toml' {message}") as caught:
        table.for_layers(windows)
    assert "\n" not in str(caught.value)


def test_a_models_sliding_window_that_no_code_can_have():
    code = CacheCode.parse("balanced:2/1")
    assert code.for_layers([1 << 20])[0].tiers.sliding == 1 << 20
    with pytest.raises(
        UserError, match=r"which layer 1 of the model has; allowed are at most 1048"
    ):
        code.for_layers([None, (1 << 20) + 1])


def test_a_table_for_another_model_is_refused(tmp_path):
    table = read_code(write(tmp_path))
    with pytest.raises(
        UserError, match=r"^code table 'table.toml' has 2 layers; the model has 30$"
    ):
        table.of_layers(30)
    assert CacheCode("balanced", 2, 1).of_layers(3) == (CacheCode("balanced", 2, 1),) * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code = ", "not TOML: Invalid value"),
        ("", "code: missing"),
        (TABLE + "depth = 3\n", "depth: unknown field"),
        (
            TABLE.replace("[3, 2]", "[3, 6]"),
            "key_digits.1: 6 is not allowed; must be less than or equal to 5",
        ),
        (TABLE.replace("[3, 2]", "3"), "key_digits: 3 is not allowed; must be a valid list"),
        (TABLE.replace("[3, 2]", "[3]"), "key_digits has 1 layers, value_digits 2; must be as"),
        (SLIDING.replace("[8, 0]", "[8]"), "key_digits has 2 layers, sliding 1; must be as many"),
        (
            SLIDING.replace("[8, 0]", "[8, -1]"),
            "sliding.1: -1 is not allowed; must be greater than",
        ),
        (
            SLIDING.replace("window=4", "sliding=8"),
            "sliding and sliding=8 in code both say the sliding window; allowed is one of them",
        ),
        (TABLE.replace("balanced", "ternary"), "code: 'ternary:1/1,window=4' is not a cache code"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        read_code(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no\.toml': No such file or directory$"):
        read_code(str(tmp_path / "no.toml"))


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("balanced:2/2", "absmean"),
        ("residual:2/2", "max"),
        ("balanced:2/2,scale=lsq", "lsq"),
        ("residual:2/2,scale=absmean", "absmean"),
    ],
)
def test_choice_of_the_scale(text: str, choice: str) -> None:
    assert CacheCode.parse(text).scale_choice == choice


def test_a_chosen_scale_is_in_the_text() -> None:
    """The text is the code's name in files and keys: another scale is another code."""
    assert str(CacheCode.parse("residual:2/2,scale=absmean")) == "residual:2/2,scale=absmean"
    assert str(CacheCode.parse("residual:2/2")) == "residual:2/2"
