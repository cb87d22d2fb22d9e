"""The bench of the normalizer, on both simulators."""

from __future__ import annotations

from bench_matrix import check_bench, every_config

from kvtq_hw.contract.config import EngineConfig


@every_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("normalizer", config, simulator)
