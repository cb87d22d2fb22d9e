"""The bench of the registers, on both simulators."""

from __future__ import annotations

import pytest
from bench_matrix import CONFIGS, check_bench

from kvtq_hw.contract.config import EngineConfig


@pytest.mark.parametrize("config", [CONFIGS["tiny"], CONFIGS["smollm2"]], ids=["tiny", "smollm2"])
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("control", config, simulator)
