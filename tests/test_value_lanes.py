"""The bench of the value lanes, on both simulators."""

from __future__ import annotations

from bench_matrix import check_bench, every_format

from kvtq_hw.contract.config import EngineConfig


@every_format
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("value_lanes", config, simulator)
