"""The bench of the normalizer, on both simulators."""

from __future__ import annotations

import pytest
from bench_matrix import CONFIGS, TINY, check_bench

from kvtq_hw.contract.config import EngineConfig

#: Heads that share two multipliers unevenly: three of them one, two the other.
UNEVEN = {"uneven": TINY.replace(name="uneven", query_group=5, block=8)}


def test_heads_share_multipliers_in_all_ways() -> None:
    turns = {name: config.normalizer_turns for name, config in (CONFIGS | UNEVEN).items()}
    assert turns == {
        "tiny": 2,
        "full-width": 1,
        "power-of-two": 2,
        "odd": 1,
        "smollm2": 3,
        "uneven": 3,
    }


@pytest.mark.parametrize("config", [*CONFIGS.values(), *UNEVEN.values()], ids=[*CONFIGS, *UNEVEN])
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("normalizer", config, simulator)
