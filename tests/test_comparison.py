"""Engines side by side: what is equal is equal, by hand-counted cycles and bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from input_files import quality

from kvtq_hw.commands.compare import CODES
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.cycle_model import uniform_job_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.area import Area, AreaReport
from kvtq_hw.estimates.candidates import integers, ternary
from kvtq_hw.estimates.comparison import (
    NearMiss,
    Row,
    equal_bandwidth,
    equal_lanes,
    equal_speed,
    smallest,
)
from kvtq_hw.estimates.liberty import Liberty
from kvtq_hw.estimates.quality_files import quality_of, read_quality

# D = 8, two heads, 5 digits in a byte; blocks long enough to hide a rescale behind
TINY = load_config("tiny").replace(block=32)
K3V2 = ternary(TINY, CacheCode("balanced", 3, 2))
K1V1 = ternary(TINY, CacheCode("balanced", 1, 1))
INT4 = integers(TINY)[1]
MIXED = CodeTable("mix.toml", (CacheCode("balanced", 3, 2), CacheCode("balanced", 1, 1)))


def measure(config: EngineConfig, liberty: Liberty | None = None) -> AreaReport:
    """Ten a lane and head in the lanes' block, one hundred for the rest."""

    def area(um2: float) -> Area:
        return Area(1, {}, um2, 0.0, 0, 0, 0)

    lanes = area(10.0 * config.lanes * config.query_group)
    return AreaReport(config, "x", "x", None, {"select_add": lanes, "engine": area(100.0)})


def planes(row: Row) -> tuple[int, int]:
    return row.key_planes, row.value_planes


def test_equal_lanes() -> None:
    rows = equal_lanes([K3V2, K1V1], 4, 10, measure)
    assert [row.lanes for row in rows] == [4, 4]
    assert [row.um2 for row in rows] == [180.0, 180.0]
    assert [row.lane_um2 for row in rows] == [10.0, 10.0]
    assert rows[0].cycles > rows[1].cycles


def test_equal_speed_takes_the_fewest_lanes_then_the_fewest_planes() -> None:
    wanted = uniform_job_cycles(K3V2.engine(8, 3, 2), 32, 3, 2)
    several, one = equal_speed([K3V2, K1V1], wanted, 32, measure)
    # one slice per vector and no less does it for three key planes; 5 % more would not be enough
    assert (several.lanes, *planes(several), several.cycles) == (8, 3, 2, wanted)
    assert (one.lanes, *planes(one)) == (8, 1, 1)
    assert K1V1.cycles(K1V1.engine(4), 32) > wanted * 1.05
    # half the speed: half the lanes
    slow = uniform_job_cycles(K3V2.engine(4, 3, 2), 32, 3, 2)
    (row,) = equal_speed([K3V2], slow, 32, measure)
    assert (row.lanes, *planes(row)) == (4, 3, 2)
    # what cannot get there is left out
    assert equal_speed([K3V2], wanted // 2, 32, measure) == []
    assert smallest(K3V2, 32, 1) is None


def test_equal_bandwidth_takes_the_lanes_that_keep_up() -> None:
    (row,) = equal_bandwidth([K1V1], memory_bits=8, tokens=32, measure=measure)
    assert row.memory_cycles == 32 * 6  # a byte per cycle
    assert row.lanes == 4  # 4 slices per token within 6 cycles; 2 lanes would take 8
    (row,) = equal_bandwidth([K3V2], memory_bits=4096, tokens=32, measure=measure)
    assert (row.lanes, *planes(row), row.effective_cycles) == (8, 3, 2, row.cycles)
    (row,) = equal_bandwidth([K3V2], memory_bits=1, tokens=32, measure=measure)
    assert (row.lanes, *planes(row), row.effective_cycles) == (2, 1, 1, 32 * 12 * 8)


def test_a_narrow_miss_of_a_memory_is_named() -> None:
    """The smaller engine, its cycles and those allowed; none where smaller engines miss widely."""
    tokens, bits = 512, 20
    allowed = INT4.memory_cycles(bits, tokens) + INT4.fixed_cycles(tokens)
    wide = INT4.cycles(INT4.engine(4), tokens, bits)
    assert (allowed, wide) == (2133, 2152)
    (row,) = equal_bandwidth([INT4], bits, tokens, measure)
    assert row.missed == NearMiss(4, 1, 1, 180.0, wide, allowed)
    assert (row.lanes, row.um2) == (8, 260.0)
    (row,) = equal_bandwidth([K1V1], memory_bits=8, tokens=32, measure=measure)
    assert row.missed is None


def test_a_tables_row_is_of_the_mean_layer() -> None:
    mixed = ternary(TINY, MIXED)
    (row,) = equal_lanes([mixed], 4, 10, measure)
    config = mixed.engine(4)
    both = K3V2.cycles(config, 10) + K1V1.cycles(config, 10)
    assert both % 2 == 0 and (row.layers, row.cycles) == (2, both // 2)
    # 120 and 60 bytes; 24 bits per cycle, 40 and 20 cycles, which the engine takes longer than
    assert row.bytes == 90
    (row,) = equal_bandwidth([mixed], memory_bits=24, tokens=10, measure=measure)
    assert (row.memory_cycles, row.effective_cycles) == (30, row.cycles)
    # half a cycle is rounded up: 120 bytes at 88 bits per cycle are 11 cycles, 60 are 6
    (row,) = equal_bandwidth([mixed], memory_bits=88, tokens=10, measure=measure)
    assert row.memory_cycles == 9


def test_a_table_keeps_up_when_its_layers_do_together() -> None:
    mixed, tokens = ternary(TINY, MIXED), 128
    # two bytes per cycle: six cycles per token of K3/V2, three of K1/V1
    bound = tokens * (6 + 3) + K3V2.fixed_cycles(tokens) + K1V1.fixed_cycles(tokens)
    (row,) = equal_bandwidth([mixed], memory_bits=16, tokens=tokens, measure=measure)
    assert (row.lanes, *planes(row)) == (8, 1, 1)
    config = mixed.engine(8)
    assert row.effective_cycles * 2 == mixed.cycles(config, tokens, 16) <= bound
    # with four lanes the short layer takes longer than its bytes, and the long one has to wait
    narrow = mixed.engine(4, 3, 2)
    assert mixed.cycles(narrow, tokens) <= bound < mixed.cycles(narrow, tokens, 16)
    engines = mixed.engines()
    for smaller in engines[: engines.index(config)]:
        assert mixed.cycles(smaller, tokens, 16) > bound


def test_a_table_at_equal_speed() -> None:
    mixed = ternary(TINY, MIXED)
    wanted = mixed.cycles(mixed.engine(4), 64)
    (row,) = equal_speed([mixed], wanted // 2, 64, measure)
    assert (row.lanes, *planes(row), row.cycles) == (4, 1, 1, wanted // 2)


def test_the_default_codes_are_worth_it() -> None:
    config = load_config("smollm2")
    candidates = [ternary(config, code) for code in CODES]
    rows = equal_bandwidth([*candidates, *integers(config)], 64, 1024, measure)
    cycles = {row.name: row.effective_cycles for row in rows}
    assert [row.name for row in rows[:3]] == ["ternary K3/V2", "ternary K2/V2", "ternary K2/V1"]
    speeds = [round(cycles["INT8"] / row.effective_cycles, 3) for row in rows[:3]]
    assert speeds == [1.84, 2.291, 2.941]  # as docs/measured.md and docs/estimates.md have them
    assert cycles["INT4"] > cycles["ternary K2/V2"]


def test_json_says_what_is_measured_and_what_derived() -> None:
    (row,) = equal_lanes([INT4], 4, 10, measure)
    written = row.as_dict()
    assert set(written["tags"].values()) == {"measured", "derived"}
    assert {name for name, tag in written["tags"].items() if tag == "measured"} == {
        "um2",
        "lane_um2",
        "blocks",
    }
    assert json.loads(json.dumps(written)) == written


def test_quality_comes_from_results(tmp_path: Path) -> None:
    file, data = tmp_path / "q.json", quality()
    row = data["rows"][0] | {"code": "int4", "perplexity_ratio": 1.25, "bits_per_element": 4.25}
    row["kld"] = 0.125
    table = row | {"code": "docs/tables/mix.toml", "perplexity_ratio": 1.5}
    file.write_text(json.dumps(data | {"rows": [row, table]}))
    results = read_quality([file])
    assert quality_of("int4", results) == {
        "tag": "measured",
        "file": "q.json",
        "perplexity_ratio": 1.25,
        "kld": 0.125,
        "bits_per_element": 4.25,
    }
    assert quality_of("int8", results) is None
    found = quality_of(str(MIXED), results)
    assert found is not None and found["perplexity_ratio"] == 1.5
    assert quality_of("ix.toml@12345678", results) is None
    file.write_text("[]")
    with pytest.raises(UserError, match=r"^result of kvtq-hw eval '.*q.json': \[\] is not allowed"):
        read_quality([file])


def test_command(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("kvtq_hw.estimates.area.measure_area", measure)
    file = tmp_path / "compare.json"
    arguments = ["compare", "--preset", "tiny", "--context", "32", "--memory-bits", "16"]
    arguments += ["--code", "balanced:3/2", "--code", "balanced:2/1", "--json", str(file)]
    assert run(arguments) == 0
    assert "ternary K2/V1" in capsys.readouterr().out
    ways = json.loads(file.read_text())["ways"]
    names = [candidate.name for candidate in integers(TINY)]
    for rows in ways.values():
        assert [row["name"] for row in rows] == ["ternary K3/V2", "ternary K2/V1", *names]
    assert run(["compare", "--preset", "tiny", "--context", "65"]) == 1
    assert capsys.readouterr().err == (
        "kvtq-hw: error: --context: 65 is more than max_context 64\n"
    )


def test_without_areas_everything_else_is_the_same(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("kvtq_hw.estimates.area.measure_area", measure)
    arguments = ["compare", "--preset", "tiny", "--context", "32", "--code", "balanced:3/2"]
    ways = []
    for name, more in (("with", []), ("without", ["--no-areas"])):
        file = tmp_path / f"{name}.json"
        assert run([*arguments, *more, "--json", str(file)]) == 0
        ways.append(json.loads(file.read_text())["ways"])
        assert ("um2" in capsys.readouterr().out) == (name == "with")
    none = {"um2": None, "lane_um2": None, "blocks": {}}
    whole_rows, bare_rows = ([row for rows in each.values() for row in rows] for each in ways)
    for whole, without in zip(whole_rows, bare_rows, strict=True):
        assert whole["um2"] > 0 and whole["missed"] is None
        assert without == whole | none


def test_command_compares_on_a_tables_sliding_windows(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("kvtq_hw.estimates.area.measure_area", measure)
    table, file = tmp_path / "mix.toml", tmp_path / "c.json"
    table.write_text(replace(MIXED, windows=(8, None)).to_toml())
    arguments = ["compare", "--preset", "tiny", "--context", "32", "--code", str(table)]
    assert run([*arguments, "--code", "balanced:1/1", "--json", str(file)]) == 0
    capsys.readouterr()
    rows, *_ = json.loads(file.read_text())["ways"].values()
    assert [row["layers"] for row in rows] == [2] * 5
    mean = (8 + 32) // 2
    bytes_of = {row["name"]: row["bytes"] for row in rows}
    assert bytes_of["ternary K1/V1"] == mean * 2 * (2 + 1)
    assert bytes_of["INT8"] == mean * 2 * (8 + 1)
    assert run([*arguments, "--code", "balanced:1/1,sliding=8"]) == 1
    assert "layer 1 of the model has no sliding window" in capsys.readouterr().err


def test_command_takes_a_table_and_its_quality(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("kvtq_hw.estimates.area.measure_area", measure)
    table, file, results = (tmp_path / name for name in ("mix.toml", "c.json", "q.json"))
    table.write_text(MIXED.to_toml())
    data = quality()
    row = data["rows"][0] | {"code": f"elsewhere/{table.name}", "perplexity_ratio": 1.25}
    results.write_text(json.dumps(data | {"rows": [row]}))
    arguments = ["compare", "--preset", "tiny", "--context", "32", "--code", str(table)]
    assert run([*arguments, "--quality", str(results), "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "ternary mix" in printed and "x1.2500" in printed
    assert "Cycles and bytes of several layers are their mean, rounded up." in printed
    written = json.loads(file.read_text())
    assert written["command"].endswith(f" --code {table} --quality {results}")
    for rows in written["ways"].values():
        assert (rows[0]["code"], rows[0]["layers"]) == (str(MIXED), 2)
        assert rows[0]["quality"]["perplexity_ratio"] == 1.25
    assert run([*arguments[:-1], str(tmp_path / "no.toml")]) == 1
    assert capsys.readouterr().err.startswith("kvtq-hw: error: code table ")
