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
#: Too large for Icarus: five slices a plane, five blocks of the rotation, feedback that saturates.
LARGE = TINY.model_copy(update={"name": "D80", "head_dim": 80, "lanes": 16, "query_group": 3})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bench(config, simulator):
    check_bench("accelerator", config, simulator)


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
def test_bench_of_longer_vectors(simulator):
    check_bench("accelerator", LARGE, simulator)
