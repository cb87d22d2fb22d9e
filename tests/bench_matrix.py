"""Configurations that every bench runs with, and how a test runs one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtq_hw.contract.config import EngineConfig, load_config
from sim.bench.runner import run_bench

TINY = load_config("tiny")

CONFIGS = {
    # two slices per plane
    "tiny": TINY,
    # one slice per plane
    "full-width": TINY.replace(name="full-width", lanes=TINY.head_dim),
    # power-of-two scales: no multiplier on a token's path
    "power-of-two": TINY.replace(name="power-of-two", scale_fraction_bits=0),
    # one head, widths that are no multiples of anything, an adder tree with odd terms
    "odd": EngineConfig(
        name="odd",
        head_dim=12,
        query_group=1,
        lanes=6,
        query_bits=9,
        score_bits=17,
        score_fraction_bits=4,
        weight_bits=11,
        output_fraction_bits=9,
        scale_fraction_bits=1,
        scale_exponent_bits=4,
        max_planes=3,
        block=4,
        max_context=32,
        table_heads=3,
        anchor_slots=7,
    ),
    # what decoding runs on
    "smollm2": load_config("smollm2"),
}

#: The comparison engines' formats: two slices per vector, and one.
INTEGER_CONFIGS = {
    "int8": TINY.replace(name="int8", cache_format="int8", max_planes=1),
    "int4": TINY.replace(name="int4", cache_format="int4", max_planes=1, lanes=TINY.head_dim),
}

#: Several planes per slice, never as many for keys as for values or as the vectors have.
PLANES_CONFIGS = {
    name: base.replace(name=name, key_planes_per_cycle=keys, value_planes_per_cycle=values)
    for name, base, keys, values in (
        # two slices per plane
        ("planes-2-3", TINY, 2, 3),
        # one slice per plane: five key planes in two slices, five value planes in three
        ("planes-3-2", CONFIGS["full-width"], 3, 2),
        # one head, at most three planes, and all of a value's in one slice
        ("planes-2-3-odd", CONFIGS["odd"], 2, 3),
    )
}

#: For blocks that only packing and head dimension concern.
PACKED_CONFIGS = {
    "tiny": TINY,
    "two-bit": TINY.replace(name="two-bit", packing="2bit"),
    "smollm2": CONFIGS["smollm2"],
}

#: For blocks that only the head dimension concerns: blocks of 8, 4, 16 and 64 elements.
SHAPES = {
    "D8": TINY,
    "D12": CONFIGS["odd"],
    "D80": TINY.replace(name="D80", head_dim=80, lanes=40),
    "D64": CONFIGS["smollm2"],
}

#: For blocks at the memory port. Words of tiny hold 4 bytes, those of smollm2 16.
MEMORY_CONFIGS = {
    # a plane and its scale fit in a word, two slices per plane
    "tiny": TINY,
    # one slice per plane, words that hold several planes, scales of two bytes
    "wide": TINY.replace(name="wide", lanes=8, memory_bits=128, scale_fraction_bits=6),
    # planes of four words, residual codes' scales between them
    "narrow": CONFIGS["smollm2"].replace(name="narrow", memory_bits=32, block=8),
    # what decoding runs on
    "smollm2": CONFIGS["smollm2"],
    # two slices per plane, the planes of one slice in up to three words
    "planes-2-3": PLANES_CONFIGS["planes-2-3"],
    # one slice per plane, several of them in a word, scales of two bytes
    "planes-3-2": PLANES_CONFIGS["planes-3-2"].replace(memory_bits=128, scale_fraction_bits=6),
}

#: Build cache of the tests, shared by parallel workers.
FOLDER = Path(__file__).resolve().parent.parent / "build" / "sim"

every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
every_packed_config = pytest.mark.parametrize("config", PACKED_CONFIGS.values(), ids=PACKED_CONFIGS)
every_memory_config = pytest.mark.parametrize("config", MEMORY_CONFIGS.values(), ids=MEMORY_CONFIGS)
every_format = pytest.mark.parametrize(
    "config",
    [*CONFIGS.values(), *INTEGER_CONFIGS.values(), *PLANES_CONFIGS.values()],
    ids=[*CONFIGS, *INTEGER_CONFIGS, *PLANES_CONFIGS],
)
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def check_bench(
    block: str, config: EngineConfig, simulator: str, seed: int = 1, testcase: str | None = None
) -> None:
    """Run a block's bench, or those of its tests whose names end so; every one must pass."""
    result = run_bench(block, config, simulator, seed=seed, folder=FOLDER, testcase=testcase)
    failures = "\n".join(f"{test.name}: {test.message}" for test in result.failed)
    assert not result.failed, f"{failures}\nlog: {result.log}"
