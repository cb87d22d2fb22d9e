"""The scheduler, by its bench on both simulators; a bench that did not meet everything fails."""

from __future__ import annotations

import pytest
from bench_matrix import CONFIGS, FOLDER, TINY, check_bench

from kvtq_hw.contract.config import EngineConfig
from sim.bench.coverage import TABLE
from sim.bench.runner import run_bench


@pytest.mark.parametrize("config", [CONFIGS["tiny"], CONFIGS["odd"]], ids=["tiny", "odd"])
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("scheduler", config, simulator)


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
def test_a_hole_in_the_coverage_fails(simulator: str) -> None:
    """A run that has met nothing: the bins that it lacks are named, and the table is there."""
    result = run_bench(
        "scheduler", TINY, simulator, seed=7, folder=FOLDER, testcase="every_bin_was_hit"
    )
    (covered,) = result.failed
    assert covered.message.startswith("coverage of scheduler: ")
    assert "event_in_state=write_slverr x leaving" in covered.message
    assert "| leaving_no_body x abort | 0 |" in result.log.with_name(TABLE).read_text()
