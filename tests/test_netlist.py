"""Multipliers in the synthesized netlist: by block, expected against found."""

from __future__ import annotations

import pytest
from bench_matrix import FOLDER, INTEGER_CONFIGS, every_config, every_format

from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.estimates.netlist import count_multipliers, expected_multipliers
from rtl import elements
from rtl.blocks import BLOCKS, create_block, module_name
from rtl.verilog import emit
from sim.verilated.verilog_cache import cached_verilog

TOP = module_name("engine")


@every_format
def test_multipliers_by_block(config: EngineConfig) -> None:
    verilog = cached_verilog("engine", config, FOLDER / "verilog")
    assert count_multipliers(verilog, TOP) == expected_multipliers(config)


def test_expected_numbers() -> None:
    smollm2 = load_config("smollm2")
    scaled = expected_multipliers(smollm2)
    shifted = expected_multipliers(smollm2.replace(scale_fraction_bits=0))
    assert {name: number for name, number in scaled.items() if number} == {
        "plane_scaler": 3,
        "weight_scaler": 3,
        "normalizer": 2,
    }
    assert {name: number for name, number in shifted.items() if number} == {"normalizer": 2}
    integers = expected_multipliers(INTEGER_CONFIGS["int8"])
    assert {name: number for name, number in integers.items() if number} == {
        "plane_scaler": 2,
        "weight_scaler": 2,
        "normalizer": 4,
        "key_lanes": 8,
        "value_lanes": 8,
    }


@pytest.mark.parametrize("block", ["append_path", "tables"])
@every_config
def test_the_write_side_multiplies_nowhere(config: EngineConfig, block: str) -> None:
    # a head's place in the tables is an address: three heads are as good as all of a model
    config = config.replace(table_heads=3)
    verilog = cached_verilog(block, config, FOLDER / "verilog")
    assert count_multipliers(verilog, module_name(block)) == dict.fromkeys(BLOCKS, 0)


def test_a_multiplier_in_a_lane_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: multiply in each lane of each head, and as many more are counted."""
    config = load_config("tiny")
    monkeypatch.setattr(elements, "select", lambda trit, value: value * trit.as_value())
    counts = count_multipliers(emit(create_block("engine", config), TOP, ""), TOP)
    expected = expected_multipliers(config)
    expected |= dict.fromkeys(("key_lanes", "value_lanes"), config.lanes * config.query_group)
    assert counts == expected


def test_a_module_of_no_block_is_refused() -> None:
    verilog = (
        "module kvtq_engine(input a, output y); other x(.a(a), .y(y)); endmodule\n"
        "module other(input a, output y); assign y = ~a; endmodule\n"
    )
    with pytest.raises(ValueError, match=r"^module 'other' belongs to none of the blocks query_"):
        count_multipliers(verilog, TOP)


def test_every_instance_of_a_module_counts() -> None:
    """Identical modules are written once, and instantiated where they were."""
    verilog = (
        "module kvtq_engine(input [7:0] a, b, output [15:0] x, y); "
        "kvtq_engine_normalizer n(.a(a), .b(b), .y(x)); "
        "kvtq_engine_key_lanes k(.a(a), .b(b), .y(y)); endmodule\n"
        "module kvtq_engine_normalizer(input [7:0] a, b, output [15:0] y); wire [15:0] p, q; "
        "kvtq_engine_key_lanes_product one(.a(a), .b(b), .y(p)); "
        "kvtq_engine_key_lanes_product two(.a(b), .b(b), .y(q)); assign y = p + q; endmodule\n"
        "module kvtq_engine_key_lanes(input [7:0] a, b, output [15:0] y); "
        "kvtq_engine_key_lanes_product one(.a(a), .b(b), .y(y)); endmodule\n"
        "module kvtq_engine_key_lanes_product(input [7:0] a, b, output [15:0] y); "
        "assign y = a * b; endmodule\n"
    )
    counts = count_multipliers(verilog, TOP)
    assert counts == dict.fromkeys(BLOCKS, 0) | {"engine": 0, "normalizer": 2, "key_lanes": 1}


def test_constant_powers_of_two_are_no_multipliers() -> None:
    verilog = (
        "module kvtq_engine(input [7:0] a, input [7:0] b, output [15:0] x, y, z);"
        "assign x = a * 8'd16; assign y = a * 8'd7; assign z = a * b; endmodule"
    )
    counts = count_multipliers(verilog, TOP)
    assert counts == dict.fromkeys(BLOCKS, 0) | {"engine": 2}
