"""The accelerator, by its bench: all of it on both simulators in one configuration."""

from __future__ import annotations

import pytest
from bench_matrix import PLANES_CONFIGS, TINY, check_bench

#: On one simulator: what differs is in blocks whose own benches run on both.
OTHERS = {
    # one head, a rotation of blocks of four, words wider than a record
    "odd": TINY.replace(
        name="odd", head_dim=12, query_group=1, lanes=12, packing="2bit", memory_bits=128
    ),
    # several planes per slice
    "planes-3-2": PLANES_CONFIGS["planes-3-2"],
}
#: Vectors only, jobs and errors are as in tiny: up to five slices per plane and five blocks of the
#: rotation, feedback that saturates, as many query heads as a KV head may have.
LARGE = {
    name: TINY.replace(name=name, head_dim=head_dim, lanes=lanes, query_group=query_group)
    for name, head_dim, lanes, query_group in (
        ("D16-G8", 16, 8, 8),
        ("D80-G3", 80, 16, 3),
        ("D96-G1", 96, 32, 1),
        ("D128-G2", 128, 64, 2),
    )
}
#: Tests of heads that live from their first token on.
LIVES = "pausing=False,pausing=True,not_rotated,append_and_attend_apart"
#: Those, limits of jobs and pages, and faults and resets; the coverage is asked of tiny alone.
FAULTS = (
    f"{LIVES},part=0,part=1,part=2,every_refusal,as_many_tokens_as_there_may_be,"
    "reset_in_every_state"
)


def test_bench(simulator):
    check_bench("accelerator", TINY, simulator)


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_bench_of_other_shapes(config, simulator):
    check_bench("accelerator", config, simulator, testcase=FAULTS)


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
@pytest.mark.parametrize("config", LARGE.values(), ids=LARGE)
def test_bench_of_larger_ones(config, simulator):
    check_bench("accelerator", config, simulator, testcase=LIVES)
