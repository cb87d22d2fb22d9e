"""Energy of a token: scaling rules, accesses, bits and tables of digits, all by hand."""

from __future__ import annotations

import dataclasses

import pytest

from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import ConfigError, load_config
from kvtq_hw.contract.cycle_model import code_job_cycles
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates import system_energy as module
from kvtq_hw.estimates.candidates import integers, ternary
from kvtq_hw.estimates.lane_rows import row_of
from kvtq_hw.estimates.system_energy import (
    CODE,
    RULES,
    SRAM,
    SYSTEMS,
    Measured,
    Work,
    candidates,
    measurements,
    nearest,
    system_energy,
)
from rtl import layouts
from rtl.blocks import blocks_of

EIGHT = load_config("smollm2").replace(lanes=8)
INT8 = integers(EIGHT)[0]
SMOLLM2, LLAMA = SYSTEMS
WORK = Work(key_slices=100, value_slices=50, cycles=1000, heads=3)


# --- the engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block, factor",
    {
        **dict.fromkeys(("query_buffer", "select_add", "multiply_add", "plane_scaler"), 2 * 7),
        **dict.fromkeys(("weight_scaler", "select_accumulate", "multiply_accumulate"), 3 * 7),
        **dict.fromkeys(("online_softmax", "normalizer"), 5 * 7),
        **dict.fromkeys(("sequencer", "engine"), 5),
    }.items(),
)
def test_each_block_follows_what_it_works_on(block: str, factor: int) -> None:
    measured = Measured(EIGHT, 9, WORK, {block: 4.0})
    other = Work(key_slices=200, value_slices=150, cycles=5000, heads=21)
    assert measured.picojoules(other) == pytest.approx(4.0 * factor)
    assert measured.picojoules(WORK) == 4.0


def test_blocks_are_added() -> None:
    measured = Measured(EIGHT, 9, WORK, {"select_add": 4.0, "engine": 1.0})
    assert measured.picojoules(dataclasses.replace(WORK, cycles=3000)) == pytest.approx(4 + 3)


def test_every_block_of_an_engine_has_a_rule() -> None:
    blocks = blocks_of(INT8.config)  # with integers there are no blocks beside the engine's
    assert set(RULES) == {row_of(block, each) for block in blocks for each in (EIGHT, INT8.config)}


def test_an_unknown_block_is_one_clear_line() -> None:
    measured = Measured(EIGHT, 9, WORK, {"tiles": 4.0})
    with pytest.raises(UserError, match=r"^power result: block 'tiles' has no rule .*known are q"):
        measured.picojoules(WORK)


# --- the whole system -----------------------------------------------------------------------------


def test_k3_v2_of_smollm2_at_1024_tokens() -> None:
    # 4 + 32 tokens in five digits, 988 in three and two; eight slices a plane
    keys, values = 8 * (36 * 5 + 988 * 3), 8 * (36 * 5 + 988 * 2)
    work = Work(keys // 2, values // 4, 1000, 3)
    measured = Measured(EIGHT, 9, work, {"select_add": 100.0, "select_accumulate": 1000.0})
    found = system_energy(SMOLLM2, 1024, ternary(EIGHT, CODE), measured)
    heads = 30 * 3
    assert found.engine == pytest.approx(heads * (2 * 100 + 4 * 1000) / 1e6)
    # a plane has 13 bytes, a scale one
    size = 36 * 2 * (5 * 13 + 1) + 988 * (5 * 13 + 2)
    assert found.bits_per_element == pytest.approx(size * 8 / (2 * 64 * 1024))
    # the new token written, the one that leaves the window read and written
    assert found.moved_bits == heads * 8 * (size + 2 * 2 * 66 + 67)
    # words of 128 bits in four macros; scores of 3 x 12 bits in two; 64 centres; on each side
    # 15 x 4 + 16 x 3 + 16 x 2 + 16 words of 16 factors of 4 bits in two macros, and 64 shifts
    words = 4435
    assert words == -(-size // 16)
    accesses = 2 * words * 4 + 2 * 1024 * 2 + 64 + 2 * (156 * 2 + 64)
    assert found.on_chip == pytest.approx(heads * accesses * SRAM.picojoules / 1e6)
    assert found.kv_memory(20.0) == pytest.approx(found.moved_bits * 20 / 1e6)
    assert found.total(20.0) == found.engine + found.on_chip + found.kv_memory(20.0)


def test_int8_of_llama_at_32768_tokens() -> None:
    # 128 elements in sixteen slices, four heads where three were measured; plain: no tables
    tokens = 32_768
    measured = Measured(
        INT8.config, 196, Work(8 * 196, 8 * 196, 1, 3), {"multiply_accumulate": 3.0}
    )
    found = system_energy(LLAMA, tokens, INT8, measured)
    heads = 32 * 8
    assert found.engine == pytest.approx(heads * 3.0 * (16 * tokens * 4) / (8 * 196 * 3) / 1e6)
    assert found.bits_per_element == 8 * 129 / 128
    assert found.moved_bits == heads * 8 * 2 * 129 * (tokens + 1)
    accesses = 2 * (2 * 129 * tokens // 16) * 4 + 2 * tokens * 2
    assert found.on_chip == pytest.approx(heads * accesses * SRAM.picojoules / 1e6)


def test_cycles_are_those_of_an_engine_that_holds_the_context() -> None:
    tokens, measured = 32_768, Measured(EIGHT, 9, Work(1, 1, 1, 3), {"engine": 1.0})
    long, short = (
        code_job_cycles(EIGHT.replace(max_context=most), CODE, tokens) for most in (tokens, 8192)
    )
    assert long > short
    found = system_energy(SMOLLM2, tokens, ternary(EIGHT, CODE), measured)
    assert found.engine == pytest.approx(90 * long / 1e6, rel=1e-9)


def test_a_table_of_other_layers_counts_with_its_mean() -> None:
    pair = (CacheCode("balanced", 3, 2), CacheCode("balanced", 1, 1))
    measured = Measured(EIGHT, 9, Work(8, 8, 1, 3), {"select_add": 1.0})
    found = system_energy(SMOLLM2, 100, ternary(EIGHT, CodeTable("t.toml", pair)), measured)
    # thirty layers are fifteen pairs; three KV heads
    assert found.moved_bits == 15 * 3 * 8 * 101 * (5 * 13 + 2 + 2 * 13 + 2)
    assert found.bits_per_element == pytest.approx(8 * (67 + 28) / (2 * 2 * 64))
    assert found.engine == pytest.approx(15 * 3 * 100 * (3 + 1) / 1e6)


def test_formats_are_a_code_the_tables_conditioned_int4_and_int8() -> None:
    table = CodeTable("mix.toml", (CODE,) * 30)
    found = candidates(EIGHT, [table])
    names = ["ternary K3/V2", "ternary mix", "INT4 conditioned", "INT8"]
    assert [candidate.name for candidate in found] == names
    feedback = [candidate.layers[0].feedback for candidate in found]
    assert feedback == [True, True, True, False]


def test_an_access_takes_the_power_of_the_macro_s_library_for_a_period() -> None:
    period_ns, read_mw, write_mw = 6.875, (2.391613, 2.208443), (2.226912, 2.371604)
    for powers in (read_mw, write_mw):
        assert SRAM.picojoules == pytest.approx(sum(powers) / 2 * period_ns, abs=0.05)
    assert [SRAM.access(bits) / SRAM.picojoules for bits in (1, 32, 33, 128)] == [1, 1, 2, 4]


def test_tables_are_as_wide_as_in_the_rtl() -> None:
    bits = (module._FACTOR_BITS, module._SHIFT_BITS)
    assert bits == (layouts.FACTOR_BITS, layouts.SHIFT_BITS)


# --- recorded attentions --------------------------------------------------------------------------


def file(config=EIGHT, tokens: int = 9, **variants: float) -> dict:
    """Content of a file of ``kvtq-hw power --json``: energies of the block "engine" by variant."""
    return {
        "tokens": tokens,
        "variants": {
            name.replace("_", "-"): {
                "config": config.model_dump(),
                "cycles": 7,
                "slices": {"key": 5, "value": 3},
                "blocks": {"engine": {"total_pj": energy}},
            }
            for name, energy in variants.items()
        },
    }


def test_replaced_digits_are_no_attention_of_a_model() -> None:
    [found] = measurements([file(captured=2.0, no_zero_values=9.0)])
    assert found == Measured(EIGHT, 9, Work(5, 3, 7, 3), {"engine": 2.0})


def test_a_configuration_that_cannot_be_built_is_one_clear_line() -> None:
    broken = file(captured=1.0)
    broken["variants"]["captured"]["config"]["lanes"] = 7
    with pytest.raises(ConfigError, match=r"^lanes: 7 does not divide head_dim 64"):
        measurements([broken])


def test_the_nearest_attention_has_the_heads_of_the_model_or_is_the_longest() -> None:
    wide = EIGHT.replace(head_dim=128, query_group=4)
    planes = EIGHT.replace(key_planes_per_cycle=3)
    measured = measurements(
        [
            file(wide, 10, captured=1.0),
            file(EIGHT, 30, captured=2.0),
            file(EIGHT, 20, captured=3.0),
            file(planes, 5, captured=4.0),
            file(INT8.config, 6, int8=5.0),
        ]
    )

    def energies(system) -> list[float]:
        return [entry.blocks["engine"] for entry in nearest(measured, system)]

    assert energies(SMOLLM2) == [2.0, 4.0, 5.0]
    assert energies(LLAMA) == [1.0, 4.0, 5.0]
