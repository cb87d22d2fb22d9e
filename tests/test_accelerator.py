"""The accelerator, by its bench on both simulators."""

from __future__ import annotations

import pytest
from bench_matrix import TINY, check_bench

CONFIGS = {
    "tiny": TINY,
    # one head, a rotation of blocks of four, words wider than a record
    "odd": TINY.model_copy(
        update={
            "name": "odd",
            "head_dim": 12,
            "query_group": 1,
            "lanes": 12,
            "packing": "2bit",
            "memory_bits": 128,
        }
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bench(config, simulator):
    check_bench("accelerator", config, simulator)
