"""`kvtq-hw pareto`: the frontier, the pictures, and files that do not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from input_files import quality

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.pareto import Point, read_points
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.frontier import frontier
from kvtq_hw.estimates.quality_files import read_quality

pytest.importorskip("matplotlib")

ROWS = {
    "unquantized": (32.0, 1.0, 1.0),
    "balanced:3/2": (4.2, 1.01, 0.9),
    "balanced:1/1,sinks=4": (2.0, 1.2, None),
    "kivi:2": (3.2, 1.3, 0.5),
    "int2": (2.25, 9.0, 0.0),
    "fp16": (16.0, 1.0001, 1.0),
    "tables/mine.toml": (2.7, 1.03, 0.4),
}


def write(file: Path, codes: list[str], **setting: object) -> Path:
    data = quality()
    rows = [
        data["rows"][0]
        | {
            "code": code,
            "bits_per_element": ROWS[code][0],
            "perplexity_ratio": ROWS[code][1],
            "needle": ROWS[code][2],
        }
        for code in codes
    ]
    file.write_text(json.dumps(data | setting | {"rows": rows}))
    return file


def test_frontier_is_what_nothing_beats():
    points = [
        Point("a", 2.0, 1.2, None),
        Point("b", 2.0, 1.3, None),
        Point("c", 3.0, 1.25, None),
        Point("d", 4.0, 1.01, None),
        Point("e", 5.0, 1.01, None),
    ]
    assert [
        point.code
        for point in frontier(points[::-1], lambda point: (point.bits, point.perplexity_ratio))
    ] == ["a", "d"]


def test_points_of_several_files(tmp_path):
    first = write(tmp_path / "a.json", ["unquantized", "kivi:2", "int2"])
    second = write(tmp_path / "b.json", ["unquantized", "balanced:3/2"])
    points, title = read_points([first, second])
    assert [point.code for point in points] == ["kivi:2", "int2", "balanced:3/2"]
    assert points[2] == Point("balanced:3/2", 4.2, 1.01, 0.9)
    assert title == "m, 8 x 1024 tokens"


def test_a_code_table_has_its_own_colour(tmp_path):
    file = write(tmp_path / "a.json", ["tables/mine.toml", "kivi:2"])
    assert run(["pareto", str(file), "-o", str(tmp_path / "p.svg")]) == 0
    assert b"#882255" in (tmp_path / "p.svg").read_bytes()
    other = write(tmp_path / "b.json", ["balanced:3/2", "kivi:2"])
    assert run(["pareto", str(other), "-o", str(tmp_path / "q.svg")]) == 0
    assert b"#882255" not in (tmp_path / "q.svg").read_bytes()


@pytest.mark.parametrize("codes", [list(ROWS), ["balanced:1/1,sinks=4"]], ids=["all", "no needle"])
def test_pictures(tmp_path, codes):
    file = write(tmp_path / "a.json", codes)
    svg, png = tmp_path / "p.svg", tmp_path / "p.png"
    assert run(["pareto", str(file), "-o", str(svg), "-o", str(png)]) == 0
    first = svg.read_bytes()
    assert b"<svg" in first
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run(["pareto", str(file), "-o", str(svg)]) == 0
    assert svg.read_bytes() == first  # nothing of the day it was drawn on


def test_files_of_two_models(tmp_path):
    first = write(tmp_path / "a.json", ["kivi:2"])
    second = write(tmp_path / "b.json", ["int2"], model="n", model_fingerprint="g")
    with pytest.raises(UserError) as caught:
        read_quality([first, second])
    assert str(caught.value) == (
        "results of kvtq-hw eval: 'a.json' is of model 'm', weights f; 'b.json' of 'n', weights g; "
        "allowed are files of one model"
    )
    assert len(read_quality([first, first])) == 2


def test_files_of_different_measurements(tmp_path, capsys):
    first = write(tmp_path / "a.json", ["kivi:2"])
    second = write(tmp_path / "b.json", ["int2"], context=512)
    assert run(["pareto", str(first), str(second), "-o", str(tmp_path / "p.svg")]) == 1
    error = capsys.readouterr().err
    assert "was measured on something else than" in error
    assert error.endswith(": context\n")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": []}'])
def test_files_of_something_else(tmp_path, capsys, text):
    file = tmp_path / "a.json"
    file.write_text(text)
    assert run(["pareto", str(file), "-o", str(tmp_path / "p.svg")]) == 1
    assert f"error: result of kvtq-hw eval {str(file)!r}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [("p.pdf", "must end in .svg or .png"), ("a.json/p.svg", "is not a folder")],
)
def test_outputs_that_are_not_allowed(tmp_path, monkeypatch, capsys, output, message):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a.json", ["kivi:2"])
    assert run(["pareto", str(file), "-o", output]) == 1
    assert message in capsys.readouterr().err
