"""Pictures of the report: what they show, and that they are readable without colour."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from report_inputs import INPUTS, PLOT, engine_row, record

from kvtq_hw.host.results import ResultStore
from kvtq_hw.report import page
from kvtq_hw.report.content import Inputs, Plot, Section, Series
from kvtq_hw.report.plots import svg
from kvtq_hw.report.sections import SECTIONS


def test_pictures_are_the_same_every_time_and_tell_series_apart_without_colour():
    plot = asdict(PLOT)
    assert svg(plot) == svg(plot)
    two = plot | {"series": [plot["series"][0], plot["series"][0] | {"name": "t"}]}
    assert (
        "stroke-dasharray"
        not in svg(plot | {"log_x": False}).split("legend_1")[0].split("line2d_")[-1]
    )
    assert svg(two).count("stroke-dasharray") > svg(plot).count("stroke-dasharray")


def test_a_picture_is_drawn_once(monkeypatch, tmp_path):
    """Kept under everything in it; the page is the one of pictures drawn anew."""
    drawn = []

    def draw(plot: dict) -> str:
        drawn.append(plot["reading"])
        return svg(plot)

    draw.__module__ = svg.__module__  # whose sources the key holds
    monkeypatch.setattr(page, "svg", draw)
    store = ResultStore(tmp_path / "store.sqlite")
    plots = [asdict(PLOT), asdict(replace(PLOT, reading="Other."))]
    section = Section("S", "s", (), (PLOT,)).as_dict()
    report = {
        "title": "T",
        "subject": "S",
        "version": "1",
        "sections": [section | {"plots": plots}],
    }
    first = page.html(report, store)
    assert len(drawn) == 2
    assert page.html(report, store) == first == page.html(report)
    assert drawn == [plot["reading"] for plot in plots] * 2  # once for the store, once without


def test_bars_of_several_series_stand_on_one_another():
    bars = ((1.0, 1.5), (3.0, 0.5), (0.5, 2.0))
    series = tuple(Series(str(n), x, (), ("a", "b")) for n, x in enumerate(bars))
    text = svg(asdict(Plot("P", "measured", "c", "bar", "x", "", series, "r")))
    shapes = re.findall(r'<g id="patch_\d+">\s*<path d="([^"]+)"', text)[2:8]  # after the frames
    ends = [[float(x) for x in re.findall(r"[ML] (\S+) ", shape)] for shape in shapes]
    first, second, third = [[(min(x), max(x)) for x in ends[n : n + 2]] for n in (0, 2, 4)]
    assert first[0][0] == first[1][0]
    for before, after in ((first, second), (second, third)):
        assert [start for start, _ in after] == [end for _, end in before]
    unit = first[0][1] - first[0][0]
    assert [end - start for start, end in third] == pytest.approx([0.5 * unit, 2 * unit], rel=1e-4)


def compared(tmp_path: Path) -> Inputs:
    """Inputs with one comparison: A is better than B in both, C costs quality, D is unmeasured."""
    rows = [
        engine_row("ternary A", 50.0, 100, 1.25),
        engine_row("ternary B", 100.0, 100, 1.5),
        engine_row("ternary C", 50.0, 50, 1.5),
        engine_row("ternary D", 1.0, 1, None),
        engine_row("INT8", 100.0, 100, 1.125),
    ]
    blocks = {"select_add": 20.0, "select_accumulate": 25.0, "scheduler": 5.0}
    rows[0] |= {"blocks": blocks, "bytes": 640, "key_planes": 3}
    ways = {"equal lanes: 4": rows, "equal memory bandwidth: 8 bits": rows}
    return record(tmp_path, "compare", tokens=64, ways=ways)


def test_pareto_of_quality_and_speed_per_area(tmp_path):
    plot = SECTIONS["pictures"](compared(tmp_path)).plots[0]
    ternary, integers, line = plot.series
    assert (ternary.labels, integers.labels) == (("A", "B", "C"), ("INT8",))
    assert (ternary.x, integers.x) == ((2.0, 1.0, 4.0), (1.0,))
    assert (ternary.y, integers.y) == ((0.25, 0.5, 0.5), (0.125,))
    assert line.joined and (line.x, line.y) == ((1.0, 2.0, 4.0), (0.125, 0.25, 0.5))
    assert plot.reading.endswith("more speed per area costs quality, from INT8 to C; behind it: B.")


def test_areas_by_group_of_blocks_are_whole_engines(tmp_path):
    """Each engine once; a block of no group is counted with the rest."""
    plot = SECTIONS["pictures"](compared(tmp_path)).plots[1]
    parts = {series.name: dict(zip(series.labels, series.x, strict=True)) for series in plot.series}
    label = "ternary, 4 lanes, 3/1"
    assert parts["key lanes"][label] == 20.0 / 1e6 and parts["value lanes"][label] == 25.0 / 1e6
    assert parts["queries, control"][label] == 5.0 / 1e6
    names = ("ternary, 4 lanes, 3/1", "ternary, 4 lanes, 1/1", "INT8, 4 lanes")
    assert set(plot.series[0].labels) == set(names)

    recorded = json.loads((INPUTS.results / "compare-smollm2-4096.json").read_text("utf-8"))
    areas = {round(row["um2"]) for rows in recorded["ways"].values() for row in rows}
    plot = SECTIONS["pictures"](INPUTS).plots[1]
    sums = [sum(each) for each in zip(*(series.x for series in plot.series), strict=True)]
    assert {round(1e6 * total) for total in sums} == areas


def test_roofline_has_engines_and_memories(tmp_path):
    plot = SECTIONS["pictures"](compared(tmp_path)).plots[2]
    ternary, integer, *memories = plot.series
    assert (ternary.labels, ternary.x, ternary.y) == (("A, 3/1",), (10.0,), (640.0,))
    assert (integer.labels, integer.x, integer.y) == (("INT8",), (1.0,), (640.0,))
    assert [line.labels[-1] for line in memories] == ["32 bits", "64 bits", "128 bits", "256 bits"]
    for bits, line in zip((32, 64, 128, 256), memories, strict=True):
        for size, tokens in zip(line.x, line.y, strict=True):
            assert 8 * size * tokens == pytest.approx(1000 * bits)


def test_pareto_of_quality_and_energy_takes_both_from_the_files():
    plot = SECTIONS["pictures"](INPUTS).plots[3]
    ternary, integers, line = plot.series
    losses = dict(zip(integers.labels, integers.y, strict=True))
    compared_rows = json.loads((INPUTS.results / "compare-smollm2-4096.json").read_text("utf-8"))
    rows = next(iter(compared_rows["ways"].values()))
    kld = {row["name"]: row["quality"]["kld"] for row in rows}
    assert losses == {name: kld[name] for name in ("INT4 conditioned", "INT8")}
    parts = SECTIONS["system_energy"](INPUTS).tables[0].rows
    [int8] = [row for row in parts if row[:2] == (8192, "INT8")]
    assert integers.x[integers.labels.index("INT8")] == pytest.approx(1e6 / int8[-2], rel=1e-3)
    assert len(ternary.x) == 6 and len(line.x) >= 2


def test_labels_of_points_cover_no_other_label():
    """Also where points lie near one another. A label has a white box, its text is a comment."""
    near = Series("s", (1.0, 1.01, 1.02, 3.0), (1.0, 1.001, 1.0, 2.0), ("one", "two", "three", "."))
    text = svg(asdict(replace(PLOT, kind="scatter", series=(near,), log_x=False)))
    label = r'<path d="M (\S+) (\S+) \nL (\S+) \S+ \nL \S+ (\S+) [^"]*" style="[^"]*opacity: 0.7"/>'
    found = re.findall(label + r"\s*</g>\s*<!-- (\S+) -->", text)
    assert [name for *_, name in found] == list(near.labels)
    boxes = [tuple(map(float, ends)) for *ends, _ in found]  # left, bottom, right, top
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert (
                one[2] <= other[0] or other[2] <= one[0] or one[1] <= other[3] or other[1] <= one[3]
            )
