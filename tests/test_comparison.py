"""Engines side by side: what is equal is equal, by hand-counted cycles and bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtq_hw.cli import run
from kvtq_hw.codes import CacheCode
from kvtq_hw.config import EngineConfig, load_config
from kvtq_hw.cycle_model import uniform_job_cycles
from kvtq_hw.errors import UserError
from kvtq_hw.estimates.area import Area, AreaReport
from kvtq_hw.estimates.comparison import (
    Row,
    equal_bandwidth,
    equal_lanes,
    equal_speed,
    integer,
    integers,
    quality_of,
    smallest,
    ternary,
)

# D = 8, two heads, 5 digits in a byte; blocks long enough to hide a rescale behind
TINY = load_config("tiny").model_copy(update={"block": 32})
K3V2 = ternary(TINY, CacheCode("balanced", 3, 2))
K1V1 = ternary(TINY, CacheCode("balanced", 1, 1))
INT4 = integer(TINY, "int4", "int4", bits=4, scale_bytes=1)


def measure(config: EngineConfig) -> AreaReport:
    """Ten a lane and head in the lanes' block, one hundred for the rest."""

    def area(um2: float) -> Area:
        return Area(1, {}, um2, 0.0, 0, 0, 0)

    lanes = area(10.0 * config.lanes * config.query_group)
    return AreaReport(config, "x", "x", {"select_add": lanes, "engine": area(100.0)})


def planes(row: Row) -> tuple[int, int]:
    return row.key_planes, row.value_planes


def test_cycles_and_bytes_of_a_code() -> None:
    assert K3V2.cycles(TINY, 10) == uniform_job_cycles(TINY, 10, 3, 2)
    # a plane of 8 trits takes 2 bytes, a scale of 3 + 5 bits 1
    assert K3V2.bytes(10) == 10 * (3 * 2 + 1 + 2 * 2 + 1)
    assert INT4.cycles(TINY, 10) == uniform_job_cycles(TINY, 10, 1, 1)
    assert INT4.bytes(10) == 10 * 2 * (4 + 1)


def test_engines_with_multipliers() -> None:
    int8, int4 = integers(TINY)
    assert [(c.name, c.config.max_planes) for c in (int8, int4)] == [("INT8", 1), ("INT4", 1)]
    assert int8.bytes(10) - int4.bytes(10) == 10 * 2 * 4
    assert [c.config.query_bits for c in (int8, int4)] == [8, 8]
    # lanes are all there is to choose
    assert [config.lanes for config in int8.engines()] == [2, 4, 8]


def test_tiers_count_in_planes_and_bytes() -> None:
    tiered = ternary(TINY, CacheCode("balanced", 2, 1, sinks=1, window=2))
    assert tiered.key_planes(6) == [5, 2, 2, 2, 5, 5]
    assert tiered.value_planes(2) == [5, 5]
    assert tiered.key_bytes(6) == 3 * (5 * 2 + 1) + 3 * (2 * 2 + 1)
    assert tiered.cycles(TINY, 6) > ternary(TINY, CacheCode("balanced", 2, 1)).cycles(TINY, 6)


def test_a_residual_code_stores_a_scale_a_plane() -> None:
    assert ternary(TINY, CacheCode("residual", 3, 2)).bytes(1) == 5 * 2 + 5


def test_equal_lanes() -> None:
    rows = equal_lanes([K3V2, K1V1], 4, 10, measure)
    assert [row.lanes for row in rows] == [4, 4]
    assert [row.um2 for row in rows] == [180.0, 180.0]
    assert [row.lane_um2 for row in rows] == [10.0, 10.0]
    assert rows[0].cycles > rows[1].cycles


def test_equal_speed_takes_the_fewest_lanes_then_the_fewest_planes() -> None:
    wanted = uniform_job_cycles(K3V2.engine(8, 3, 2), 32, 3, 2)
    several, one = equal_speed([K3V2, K1V1], wanted, 32, measure)
    # one slice a vector and no less does it for three key planes; 5 % more would not be enough
    assert (several.lanes, *planes(several), several.cycles) == (8, 3, 2, wanted)
    assert (one.lanes, *planes(one)) == (8, 1, 1)
    assert K1V1.cycles(K1V1.engine(4), 32) > wanted * 1.05
    # half the speed: half the lanes
    slow = uniform_job_cycles(K3V2.engine(4, 3, 2), 32, 3, 2)
    (row,) = equal_speed([K3V2], slow, 32, measure)
    assert (row.lanes, *planes(row)) == (4, 3, 2)
    # what cannot get there is left out
    assert equal_speed([K3V2], wanted // 2, 32, measure) == []


def test_runs_of_one_plane_come_one_by_one() -> None:
    residual = ternary(TINY, CacheCode("residual", 3, 2, sinks=1))
    wide = residual.engine(8, 3, 2)
    # a sink in five digits of one run: two slices of keys, three of values
    assert residual.slices(wide, 10) == ([2 + 9 * 3], [3 + 9 * 2])
    assert K3V2.slices(wide, 10) == ([10], [10])
    assert smallest(residual, 10, 1) is None


def test_equal_bandwidth_takes_the_lanes_that_keep_up() -> None:
    (row,) = equal_bandwidth([K1V1], memory_bits=8, tokens=32, measure=measure)
    assert row.memory_cycles == 32 * 6  # a byte a cycle
    assert row.lanes == 4  # 4 slices a token within 6 cycles; 2 lanes would take 8
    (row,) = equal_bandwidth([K3V2], memory_bits=4096, tokens=32, measure=measure)
    assert (row.lanes, *planes(row), row.effective_cycles) == (8, 5, 5, row.cycles)
    (row,) = equal_bandwidth([K3V2], memory_bits=1, tokens=32, measure=measure)
    assert (row.lanes, *planes(row), row.effective_cycles) == (2, 1, 1, 32 * 12 * 8)


def test_json_says_what_is_measured_and_what_derived() -> None:
    (row,) = equal_lanes([INT4], 4, 10, measure)
    written = row.as_dict()
    assert set(written["tags"].values()) == {"measured", "derived"}
    assert {name for name, tag in written["tags"].items() if tag == "measured"} == {
        "um2",
        "lane_um2",
    }
    assert json.loads(json.dumps(written)) == written


def test_quality_comes_from_results(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    row = {"code": "int4", "perplexity_ratio": 1.25, "bits_per_element": 4.25}
    file.write_text(json.dumps({"rows": [row]}))
    assert quality_of("int4", [file]) == {
        "tag": "measured",
        "file": "q.json",
        "perplexity_ratio": 1.25,
        "bits_per_element": 4.25,
    }
    assert quality_of("int8", [file]) is None
    file.write_text("[]")
    with pytest.raises(UserError, match=r"^--quality: '.*q.json' is no result of kvtq-hw eval$"):
        quality_of("int4", [file])


def test_command(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr("kvtq_hw.estimates.area.measure_area", measure)
    file = tmp_path / "compare.json"
    arguments = ["compare", "--preset", "tiny", "--context", "32", "--memory-bits", "16"]
    arguments += ["--code", "balanced:3/2", "--code", "balanced:2/1", "--json", str(file)]
    assert run(arguments) == 0
    assert "ternary K2/V1" in capsys.readouterr().out
    ways = json.loads(file.read_text())["ways"]
    others = len(integers(TINY))
    assert [len(rows) for rows in ways.values()] == [2 + others] * 3
    assert run(["compare", "--preset", "tiny", "--context", "65"]) == 1
    assert capsys.readouterr().err == (
        "kvtq-hw: error: --context: 65 is more than max_context 64\n"
    )
