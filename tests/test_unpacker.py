"""The bench of the unpacker, on both simulators; golden round trips are in test_packer.py."""

from __future__ import annotations

from bench_matrix import check_bench, every_packed_config

from kvtq_hw.contract.config import EngineConfig


@every_packed_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("unpacker", config, simulator)
