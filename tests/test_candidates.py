"""Candidates of a comparison: cycles and bytes by hand, layers summed, engines in their order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.cycle_model import job_cycles, uniform_job_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.tiers import Tiers
from kvtq_hw.estimates.candidates import (
    CONDITIONED_INT4,
    Candidate,
    IntegerLayer,
    integers,
    sliding_windows,
    ternary,
)

ROOT = Path(__file__).resolve().parent.parent
# D = 8, two heads, 5 digits in a byte; blocks long enough to hide a rescale behind
TINY = load_config("tiny").replace(block=32)
K3V2 = ternary(TINY, CacheCode("balanced", 3, 2))
TABLE = CodeTable("mix.toml", tuple(CacheCode("balanced", *pair) for pair in ((3, 2), (1, 1)) * 2))


def of_integers(*names: str) -> list[Candidate]:
    by_name = {candidate.name: candidate for candidate in integers(TINY)}
    return [by_name[name] for name in names]


def test_cycles_and_bytes_of_a_code() -> None:
    assert K3V2.name == "ternary K3/V2"
    assert K3V2.cycles(TINY, 10) == uniform_job_cycles(TINY, 10, 3, 2)
    # a plane of 8 trits takes 2 bytes, a scale of 3 + 5 bits 1
    assert K3V2.bytes(10) == 10 * (3 * 2 + 1 + 2 * 2 + 1)
    # 120 bytes, three a cycle
    assert K3V2.memory_cycles(24, 10) == 40


def test_tiers_count_in_planes_and_bytes() -> None:
    tiered = ternary(TINY, CacheCode("balanced", 2, 1, Tiers(sinks=1, window=2)))
    assert tiered.bytes(6) == 3 * 2 * (5 * 2 + 1) + 3 * (2 * 2 + 1 + 1 * 2 + 1)
    two = TINY.slices
    assert tiered.cycles(TINY, 6) == job_cycles(TINY, [two * (3 * 5 + 3 * 2)], [two * (3 * 5 + 3)])


def test_a_residual_code_stores_a_scale_a_plane() -> None:
    assert ternary(TINY, CacheCode("residual", 3, 2)).bytes(1) == 5 * 2 + 5


def test_runs_of_one_plane_come_one_by_one() -> None:
    residual = ternary(TINY, CacheCode("residual", 3, 2, Tiers(sinks=1)))
    wide = residual.engine(8, 3, 2)
    # a sink in five digits of one run: two slices of keys, three of values
    assert residual.layers[0].slices(wide, 10) == (2 + 9 * 3, 3 + 9 * 2)
    assert K3V2.layers[0].slices(wide, 10) == (10, 10)


def test_a_tables_layers_are_summed() -> None:
    mixed = ternary(TINY, TABLE)
    short = ternary(TINY, CacheCode("balanced", 1, 1))
    assert (mixed.name, mixed.code, len(mixed.layers)) == ("ternary mix", str(TABLE), 4)
    for config in mixed.engines():
        both = K3V2.cycles(config, 40) + short.cycles(config, 40)
        assert mixed.cycles(config, 40) == 2 * both
    assert mixed.bytes(40) == 2 * (K3V2.bytes(40) + short.bytes(40))
    assert mixed.memory_cycles(24, 41) == 2 * (K3V2.memory_cycles(24, 41) + 41 * 2)


def test_every_layer_waits_for_its_own_bytes() -> None:
    mixed = ternary(TINY, TABLE)
    # two lanes: four slices per plane; 16 bits per cycle: six cycles a token in K3/V2, three in K1
    narrow, wide = mixed.engine(2), mixed.engine(8, 3, 2)
    assert mixed.cycles(narrow, 32, 16) == mixed.cycles(narrow, 32)
    # the short layers' bytes are there before their engine is through its fixed cycles
    short = ternary(TINY, CacheCode("balanced", 1, 1))
    assert short.memory_cycles(16, 32) == 96 < short.cycles(wide, 32)
    assert K3V2.memory_cycles(16, 32) == 192 > K3V2.cycles(wide, 32)
    assert mixed.cycles(wide, 32, 16) == 2 * (192 + short.cycles(wide, 32))


def test_a_committed_table() -> None:
    table = CodeTable.load(ROOT / "docs" / "results" / "tables" / "smollm2-3.6.toml")
    config = load_config("smollm2")
    found = ternary(config, table)
    assert (found.name, len(found.layers)) == ("ternary smollm2-3.6", 30)
    # its bits as `kvtq-hw eval` measured them on the cache itself, at 1024 tokens
    assert 8 * found.bytes(1024) / (30 * 2 * 64 * 1024) == pytest.approx(3.598649088541667, abs=0)


def test_more_digits_than_planes() -> None:
    few = TINY.replace(max_planes=2)
    with pytest.raises(UserError, match=r"^code: 'mix\.toml@\w+' has 3 digits; configuration"):
        ternary(few, TABLE)


# --- sliding windows ------------------------------------------------------------------------------

HYBRID = replace(TABLE, windows=(8, None, 8, None))
PLAIN = CacheCode("balanced", 3, 2)
SLIDING = CacheCode.parse("balanced:2/1,sliding=8")


@pytest.mark.parametrize(
    ("codes", "windows"),
    [
        ([PLAIN, TABLE], None),
        ([PLAIN, HYBRID], (8, None, 8, None)),
        ([SLIDING, HYBRID], (8, None, 8, None)),  # the code is refused then
        ([PLAIN, SLIDING], (8,)),
        ([TABLE, SLIDING], (8,) * 4),
        ([replace(TABLE, windows=(None,) * 4), SLIDING], (None,) * 4),
        ([CodeTable("all.toml", (SLIDING, SLIDING)), PLAIN], (8, 8)),
    ],
)
def test_the_models_sliding_windows_are_what_a_code_says(codes, windows) -> None:
    assert sliding_windows(codes) == windows


def test_layers_with_a_sliding_window_read_its_tokens() -> None:
    """The first and third layer as if they had 8 of the 40 tokens, in every format."""
    windows = sliding_windows([HYBRID])
    short = ternary(TINY, CacheCode("balanced", 1, 1))
    hybrid = ternary(TINY, HYBRID)
    assert hybrid.bytes(40) == 2 * (K3V2.bytes(8) + short.bytes(40))
    assert hybrid.cycles(TINY, 40) == 2 * (K3V2.cycles(TINY, 8) + short.cycles(TINY, 40))
    assert ternary(TINY, TABLE, windows) == replace(hybrid, code=str(TABLE))
    plain = ternary(TINY, PLAIN, windows)
    assert (len(plain.layers), plain.code) == (4, "balanced:3/2")
    assert plain.bytes(40) == 2 * (K3V2.bytes(8) + K3V2.bytes(40))
    for found, full in zip(integers(TINY, windows), integers(TINY), strict=True):
        if found.name != "INT4 conditioned":
            assert found.bytes(40) == 2 * (full.bytes(8) + full.bytes(40))
            cycles = full.cycles(full.config, 8) + full.cycles(full.config, 40)
            assert found.cycles(full.config, 40) == 2 * cycles
    # a sliding window that is all in the window of newest tokens, in 8 bits
    int8, conditioned = of_integers("INT8", "INT4 conditioned")
    found = integers(TINY, windows)[2]
    assert found.bytes(40) == 2 * (int8.bytes(8) + conditioned.bytes(40))


def test_codes_for_other_sliding_windows() -> None:
    with pytest.raises(UserError, match="layer 1 of the model has no sliding window"):
        ternary(TINY, SLIDING, sliding_windows([HYBRID]))
    with pytest.raises(UserError, match=r"^code table 'mix\.toml' has a sliding window of 8"):
        ternary(TINY, HYBRID, (None,) * 4)


# --- integers -------------------------------------------------------------------------------------


def test_engines_with_multipliers() -> None:
    found = integers(TINY)
    int8, int4, conditioned = found
    assert [c.name for c in found] == ["INT8", "INT4", "INT4 conditioned"]
    assert [c.code for c in found] == ["int8", "int4", CONDITIONED_INT4]
    assert [c.config.max_planes for c in found] == [1, 1, 1]
    assert [c.config.query_bits for c in found] == [8, 8, 8]
    assert int4.config == conditioned.config
    assert int8.bytes(10) == 10 * 2 * (8 + 1)
    assert int4.bytes(10) == 10 * 2 * (4 + 1)
    assert int4.cycles(int4.config, 10) == uniform_job_cycles(int4.config, 10, 1, 1)
    # lanes are all there is to choose
    assert [config.lanes for config in int8.engines()] == [2, 4, 8]


def test_tiers_of_conditioned_int4() -> None:
    int8, int4, conditioned = of_integers("INT8", "INT4", "INT4 conditioned")
    # 36 tokens of 8 bits per element, two slices each; then one more of 4
    assert conditioned.bytes(36) == int8.bytes(36)
    assert conditioned.bytes(37) == int8.bytes(36) + int4.bytes(1)
    config = conditioned.engine(4)
    assert config.slices == 2
    # four sinks, one token of the body and 27 of the window in the first block; five in the second
    blocks = [2 * (4 * 2 + 1 + 27 * 2), 2 * 5 * 2]
    assert conditioned.cycles(config, 37) == job_cycles(config, blocks, blocks)
    assert conditioned.layers[0].slices(config, 37) == (sum(blocks), sum(blocks))
    # in lanes of 8 bits the tier is like the rest
    tiered = IntegerLayer(8, Tiers(sinks=4, window=32))
    assert tiered.cycles(int8.config, 40) == int8.cycles(int8.config, 40)


def test_an_append_moves_the_new_token_and_the_one_that_leaves_the_window() -> None:
    int8, _, conditioned = of_integers("INT8", "INT4", "INT4 conditioned")
    [plain], [tiered] = int8.layers, conditioned.layers
    # 8 elements and a scale: 9 bytes in 8 bits, 5 in 4 bits
    assert plain.append_bytes(TINY) == 2 * 9
    assert tiered.append_bytes(TINY) == 2 * (9 + 9 + 5)
    # planes of two bytes
    of_code = ternary(TINY, CacheCode("balanced", 3, 2, Tiers(sinks=4, window=8))).layers[0]
    assert of_code.append_bytes(TINY) == 2 * (11 + 11) + 7 + 5
    assert K3V2.layers[0].append_bytes(TINY) == 7 + 5


def test_conditioned_int4_is_as_long_as_eval_measured() -> None:
    (conditioned,) = [c for c in integers(load_config("smollm2")) if c.name == "INT4 conditioned"]
    # there a scale has 16 bits, the engine's have 8: a byte less for each of 2 x 1024 vectors
    measured = 4.390625 * 2 * 64 * 1024 / 8
    assert conditioned.bytes(1024) == measured - 2 * 1024


# --- engines --------------------------------------------------------------------------------------


def test_engines_come_with_the_fewest_lanes_first() -> None:
    engines = K3V2.engines()
    shapes = [(c.lanes, c.key_planes_per_cycle, c.value_planes_per_cycle) for c in engines]
    assert shapes[:4] == [(2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 3, 1)]
    assert len(set(shapes)) == 3 * 25 and shapes[-1] == (8, 5, 5)


@pytest.mark.parametrize("candidate", [K3V2, ternary(TINY, TABLE), *integers(TINY)])
def test_more_lanes_planes_or_bandwidth_never_take_longer(candidate: Candidate) -> None:
    def cycles(config: EngineConfig, memory_bits: int | None = None) -> int:
        return candidate.cycles(config, 64, memory_bits)

    most = candidate.config.max_planes
    for lanes, keys, values in itertools.product((2, 4), range(1, most + 1), range(1, most + 1)):
        config = candidate.engine(lanes, keys, values)
        assert cycles(candidate.engine(2 * lanes, keys, values)) < cycles(config)
        assert cycles(config, 64) <= cycles(config, 32) <= cycles(config, 8)
        assert cycles(config) <= cycles(config, 64)
    for memory_bits in (8, 64):
        sizes = [candidate.memory_cycles(memory_bits, tokens) for tokens in range(1, 64)]
        assert sizes == sorted(sizes)
