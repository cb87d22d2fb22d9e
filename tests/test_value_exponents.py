"""Value exponents, by their bench on both simulators."""

from __future__ import annotations

import pytest
from bench_matrix import CONFIGS, check_bench

from kvtq_hw.config import EngineConfig


@pytest.mark.parametrize("config", [CONFIGS["tiny"], CONFIGS["odd"]], ids=["tiny", "odd"])
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("value_exponents", config, simulator)
