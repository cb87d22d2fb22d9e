"""The bench of multiply-add, on both simulators."""

from __future__ import annotations

from bench_matrix import check_bench, every_integer_config

from kvtq_hw.contract.config import EngineConfig


@every_integer_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("multiply_add", config, simulator)
