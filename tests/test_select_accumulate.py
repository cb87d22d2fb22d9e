"""The bench of the select-accumulate, on both simulators."""

from __future__ import annotations

from bench_matrix import check_bench, every_ternary_lane

from kvtq_hw.contract.config import EngineConfig


@every_ternary_lane
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("select_accumulate", config, simulator)
