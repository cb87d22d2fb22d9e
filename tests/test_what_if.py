"""What if: numbers of the panel, its grid against the functions, with and without it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from report_inputs import INPUTS, TINY

from kvtq_hw.contract.config import load_config
from kvtq_hw.estimates.candidates import ternary
from kvtq_hw.estimates.system_energy import CODE, SYSTEMS, Measured, Work, system_energy
from kvtq_hw.estimates.what_if import LANES, MEMORY_BITS, Attention, attention
from kvtq_hw.report.content import Control, Inputs
from kvtq_hw.report.page import html, markdown
from kvtq_hw.report.sections import what_if
from kvtq_hw.report.sections.what_if import CONTEXTS, Choice, formats_of, said, table_rows

SMOLLM2 = SYSTEMS[0]
FORMATS = formats_of(INPUTS)
assert FORMATS is not None
SECTION = what_if.build(INPUTS)
assert SECTION is not None and SECTION.panel is not None
PANEL = SECTION.panel
FIRST = Choice(SMOLLM2.model, 8192, 64, 8.0, 16, "3/2", 100.0, FORMATS.names[0])


def compared(tokens: int) -> dict[str, dict]:
    """Rows of the recorded comparison at equal memory bandwidth, by name."""
    data = json.loads((INPUTS.results / f"compare-smollm2-{tokens}.json").read_text("utf-8"))
    [rows] = [rows for way, rows in data["ways"].items() if way.startswith("equal memory")]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_bytes_and_cycles_are_those_of_the_recorded_comparison(tokens):
    """90 KV heads of SmolLM2 with the lanes and planes that `kvtq-hw compare` chose."""
    rows = compared(tokens)
    for name in ("ternary K3/V2", "INT8", "INT4 conditioned"):
        row = rows[name]
        planes = f"{row['key_planes']}/{row['value_planes']}"
        choice = replace(FIRST, tokens=tokens, lanes=row["lanes"], planes=planes)
        found = FORMATS.attention(choice, name)
        assert (found.bytes, found.cycles) == (90 * row["bytes"], 90 * row["effective_cycles"])
    row = rows["ternary smollm2-anchors-3.6"]  # the mean of its layers, there rounded up
    found = FORMATS.attention(replace(FIRST, tokens=tokens), row["name"])
    assert 90 * (row["bytes"] - 1) < found.bytes <= 90 * row["bytes"]


def test_energies_are_those_of_the_section():
    for system in SYSTEMS:
        for name, (candidate, engines) in FORMATS.by_model[system].items():
            for planes, measured in engines.items():
                choice = replace(FIRST, model=system.model, planes=planes, lanes=64, bits=512)
                found = FORMATS.attention(choice, name)
                assert found.energy == system_energy(system, 8192, candidate, measured)


def test_the_slower_of_engine_and_memory_is_the_limit():
    """A narrow memory makes the words the limit, a wide one the slices, and a table has both."""
    config = load_config("smollm2").replace(lanes=8)
    measured = Measured(config, 1000, Work(1, 1, 1, 3), {"engine": 1.0})
    candidate = ternary(config, CODE)
    narrow, wide = (attention(SMOLLM2, 1024, candidate, measured, 64, bits) for bits in (32, 512))
    head = candidate.layers[0].bytes(config, 1024)
    assert (narrow.limit, narrow.cycles) == ("memory", 90 * -(-8 * head // 32))
    engine = candidate.layers[0].cycles(config.replace(lanes=64), 1024)
    assert (wide.limit, wide.cycles) == ("engine", 90 * engine)
    assert wide.tokens_per_second(100.0) == 1e8 / (90 * engine)
    mixed = FORMATS.attention(FIRST, "ternary smollm2-anchors-2.7")
    assert (mixed.limit, mixed.waiting, mixed.layers) == ("memory in 3 of 30 layers", 3, 30)


def test_the_grid_holds_every_state():
    """Each number equals the function's for the state, of every format, memory and engine."""
    points = PANEL.grid["points"]
    assert list(points) == [system.model for system in SYSTEMS]
    for system in SYSTEMS:
        assert list(points[system.model]) == list(map(str, CONTEXTS))
        for name, (candidate, engines) in FORMATS.by_model[system].items():
            for planes, measured in engines.items():
                for tokens in CONTEXTS[:3]:
                    point = points[system.model][str(tokens)][name][planes]
                    for lanes in LANES:
                        for bits in MEMORY_BITS:
                            here = attention(system, tokens, candidate, measured, lanes, bits)
                            assert numbers(here) == looked_up(point, lanes, bits)


def numbers(one: Attention) -> tuple:
    energy = one.energy
    parts = energy.moved_bits, energy.engine, energy.on_chip
    return (one.bytes, one.cycles, one.limit, *parts)


def looked_up(point: dict, lanes: int, bits: int) -> tuple:
    cycles, limit = (point[name][str(lanes)][str(bits)] for name in ("cycles", "limit"))
    return (point["bytes"], cycles, limit, *(point[k] for k in ("moved_bits", "engine", "on_chip")))


def test_the_first_state_is_on_the_page_and_in_markdown():
    columns, rows = table_rows(FORMATS, FIRST)
    assert (PANEL.table.columns, PANEL.table.rows) == (columns, rows)
    assert columns == ("", "ternary K3/V2", "INT4 conditioned", "INT8")
    assert PANEL.said == said(FIRST)
    report = {"title": "T", "subject": "S", "version": "1"}
    report["sections"] = json.loads(json.dumps([SECTION.as_dict()]))
    page, text = html(report), markdown(report)
    for label, *cells in rows:
        assert f'<th scope="row">{label}</th>' in page
        assert f"| {label} | {' | '.join(cells)} |" in text
    assert f'<output aria-live="polite">{said(FIRST)}</output>' in page


def test_integers_are_shown_once_and_have_one_plane():
    columns, rows = table_rows(FORMATS, replace(FIRST, code="INT8"))
    assert columns == ("", "INT8", "INT4 conditioned")
    assert rows == table_rows(FORMATS, replace(FIRST, code="INT8", planes="1/1"))[1]


def test_half_is_rounded_up_as_in_the_browser():
    assert [what_if._shown(x) for x in (0.0625, 0.0005, 2.125, 12.25, 100.5, 12345.5)] == [
        "0.063",
        "0.001",
        "2.13",
        "12.3",
        "101",
        "12\u202f346",
    ]


@pytest.mark.parametrize("value", ["d", "4"])
def test_a_control_begins_with_one_of_its_options(value):
    control = (
        Control("a", "A", value, (("b", "B"), ("c", "C")))
        if value == "d"
        else Control("a", "A", value, least=1.0, most=3.0)
    )
    with pytest.raises(ValueError, match=rf"^control 'a': '{value}' is not allowed$"):
        replace(PANEL, controls=(control,))


@pytest.mark.parametrize("variants", [["captured"], ["int8", "int4"]])
def test_without_int8_or_without_a_code_there_is_no_panel(tmp_path, variants):
    data = json.loads((INPUTS.results / "power-smollm2-8lanes-1001.json").read_text("utf-8"))
    data["variants"] = {name: data["variants"][name] for name in variants}
    (tmp_path / "power.json").write_text(json.dumps(data))
    assert what_if.build(Inputs(TINY, INPUTS.codes, "m", tmp_path)) is None
    assert what_if.build(Inputs(TINY, INPUTS.codes, "m", tmp_path / "none")) is None
