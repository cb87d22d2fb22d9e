"""`kvtq-hw eval`: rows, files, and a store that loses nothing and measures nothing twice."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from tiny_model import evaluation_folder, save_tiny_model

from golden.study import quality
from kvtq_hw.commands.frame.cli import run

CODES = ("unquantized", "balanced:2/2", "int4")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A tiny model in `model` and a text in `text.txt`; every cache folder is temporary."""
    return evaluation_folder(tmp_path, monkeypatch, 150)


def arguments(*more: str, codes: tuple[str, ...] = CODES) -> list[str]:
    chosen = [word for code in codes for word in ("--code", code)]
    size = ["--context", "40", "--segments", "2"]
    return ["eval", "--model", "./model", "--text", "text.txt", *size, *chosen, *more]


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Every segment that is really measured, by its code."""
    found: list[str] = []
    reference, segment = quality.evaluate_reference, quality.evaluate_segment

    def evaluate_reference(*args, **kwargs):
        found.append("unquantized")
        return reference(*args, **kwargs)

    def evaluate_segment(language_model, of_reference, cache_format, **kwargs):
        found.append(cache_format.name)
        return segment(language_model, of_reference, cache_format, **kwargs)

    monkeypatch.setattr(quality, "evaluate_reference", evaluate_reference)
    monkeypatch.setattr(quality, "evaluate_segment", evaluate_segment)
    return found


def test_rows_in_every_form(folder, capsys):
    outputs = ["--json", "new/folder/r.json", "--csv", "r.csv", "--markdown", "r.md"]
    assert run(arguments(*outputs)) == 0
    result = json.loads(Path("new/folder/r.json").read_text())
    rows = {row["code"]: row for row in result["rows"]}
    assert tuple(rows) == CODES
    assert {row["tokens"] for row in rows.values()} == {2 * 39}
    assert rows["unquantized"]["perplexity_ratio"] == 1
    assert rows["unquantized"]["bits_per_element"] == 32
    assert rows["unquantized"]["kld"] == 0
    assert rows["balanced:2/2"]["bits_per_element"] == 8 * (2 * 2 + 1) / 8
    assert rows["int4"]["bits_per_element"] == 4 + 16 / 8
    for code in CODES[1:]:
        row = rows[code]
        ratio = row["perplexity"] / rows["unquantized"]["perplexity"]
        assert row["perplexity_ratio"] == pytest.approx(ratio, rel=1e-12)
        assert row["kld"] > 0
        assert 0 < row["top1_agreement"] < 1
        assert row["needle"] is None
    assert result["context"] == 40
    assert result["segments"] == 2
    assert result["text"] == "text.txt"
    with Path("r.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["code"] for row in table] == list(CODES)
    assert [float(row["perplexity"]) for row in table] == [r["perplexity"] for r in rows.values()]
    lines = Path("r.md").read_text().splitlines()
    assert len(lines) == 2 + len(CODES)
    assert len({line.count("|") for line in lines}) == 1
    shown = capsys.readouterr().out
    for code in CODES:
        assert code in shown
        assert f"| {code} |" in "\n".join(lines)


def test_nothing_is_measured_twice(folder, measured):
    assert run(arguments("--json", "first.json")) == 0
    assert sorted(measured) == sorted(CODES * 2)
    measured.clear()
    assert run(arguments("--json", "second.json")) == 0
    assert measured == []
    assert Path("first.json").read_text() == Path("second.json").read_text()

    # another code: the reference is needed again, what was measured is not
    assert run(arguments(codes=(*CODES, "int8"))) == 0
    assert measured == ["unquantized", "int8"] * 2
    measured.clear()
    # integer attention is another measurement of ternary codes, and the same one of all others
    assert run(arguments("--attention", "integer")) == 0
    assert measured == ["unquantized", "balanced:2/2"] * 2
    measured.clear()
    # one more segment
    assert run(arguments("--segments", "3")) == 0
    assert measured == list(CODES)


def test_an_interrupted_run_goes_on_where_it_stopped(folder, measured, monkeypatch, capsys):
    whole = quality.evaluate_segment

    def interrupted(*args, **kwargs):
        if len(measured) == 5:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(quality, "evaluate_segment", interrupted)
    assert run(arguments("--json", "r.json")) == 130
    assert "interrupted" in capsys.readouterr().err
    assert measured == [*CODES, "unquantized", "balanced:2/2"]
    measured.clear()
    monkeypatch.setattr(quality, "evaluate_segment", whole)
    assert run(arguments("--json", "r.json")) == 0
    assert measured == ["int4"]  # the unquantized model's predictions were kept
    assert list((folder / "cache" / "kvtq-hw" / "open").iterdir()) == []
    assert len(json.loads(Path("r.json").read_text())["rows"]) == 3


def test_large_predictions_are_computed_again(folder, measured, monkeypatch):
    monkeypatch.setattr("kvtq_hw.commands.frame.evaluation._MOST_BYTES", 39 * 128 * 4 - 1)
    monkeypatch.setattr(quality, "save_reference", None)
    assert run(arguments()) == 0
    measured.clear()
    assert run(arguments(codes=(*CODES, "int8"))) == 0
    assert measured == ["unquantized", "int8"] * 2


def test_the_row_says_which_attention(folder):
    assert run(arguments("--attention", "integer", "--json", "r.json")) == 0
    rows = json.loads(Path("r.json").read_text())["rows"]
    assert {row["code"]: row["attention"] for row in rows} == {
        "unquantized": "float",
        "balanced:2/2": "integer",
        "int4": "float",
    }


def test_a_calibration_of_one_s_own(folder, measured, capsys):
    """It decides the ternary rows; one of another model is refused."""
    words = ["--model", "./model", "--text", "text.txt", "--tokens", "40", "-o", "mine.safetensors"]
    assert run(["calibrate", *words]) == 0
    mine = ["--calibration", "mine.safetensors"]
    for number, more in enumerate(([], mine)):
        assert run(arguments("--json", f"{number}.json", *more)) == 0
    assert measured == [*CODES * 2, *("unquantized", "balanced:2/2") * 2]
    default, own = (
        {row["code"]: row["kld"] for row in json.loads(Path(f"{n}.json").read_text())["rows"]}
        for n in range(2)
    )
    assert own["int4"] == default["int4"]
    assert own["balanced:2/2"] != default["balanced:2/2"]
    save_tiny_model(folder / "model", seed=1)
    capsys.readouterr()
    assert run(arguments(*mine)) == 1
    assert (
        "calibration file 'mine.safetensors': made for model './model'" in capsys.readouterr().err
    )


def test_without_a_text_it_is_python_s_documentation(folder):
    command = [word for word in arguments("--json", "r.json") if word not in ("--text", "text.txt")]
    assert run(command) == 0
    assert json.loads(Path("r.json").read_text())["text"] == "pydoc_data.topics"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--code", "int5"], "code: 'int5' is not a cache code"),
        (["--needle", "3"], "--needle: 3 is not allowed; must be at most --segments, 2"),
        (
            ["--json", "text.txt/r.json"],
            "--json 'text.txt/r.json': '{folder}/text.txt' is not a folder",
        ),
        (["--segments", "9"], "text has 150 tokens; 9 segments of 40 need 360"),
        (["--context", "300"], "context: 300 is not allowed; must be 2..256, the positions of"),
        (
            ["--preset", "smollm2"],
            "configuration 'smollm2' does not fit model './model': head_dim is 64, must be 8; "
            "query_group is 3, must be 2\n",
        ),
        (["--needle", "1"], "context: 40 is too short to hide 8 needles"),
    ],
)
def test_what_is_not_allowed(folder, capsys, more, message):
    assert run(arguments(*more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("kvtq-hw: error: ")
    assert message.replace("{folder}", os.getcwd()) in error
    assert error.count("\n") == 1


def test_a_text_that_is_no_text(folder, capsys):
    Path("text.txt").write_bytes(b"\xff\xfe\x00")
    assert run(arguments()) == 1
    assert "text 'text.txt': not UTF-8 text" in capsys.readouterr().err
