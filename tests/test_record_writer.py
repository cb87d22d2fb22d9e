"""The bench of the record writer, on both simulators."""

from __future__ import annotations

from bench_matrix import check_bench, every_memory_config

from kvtq_hw.contract.config import EngineConfig


@every_memory_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("record_writer", config, simulator)
