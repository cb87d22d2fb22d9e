"""Multipliers: count in the netlist, against an engine that multiplies in its lanes."""

from __future__ import annotations

from kvtq_hw.estimates.lane_rows import row_of
from kvtq_hw.report.content import Cell, Inputs, Section, Table

__all__ = ["build"]


def build(inputs: Inputs) -> Section:
    """Count multiplier cells after coarse synthesis, for scales with and without a mantissa."""
    from kvtq_hw.estimates.netlist import count_multipliers
    from rtl.blocks import create_block, module_name
    from rtl.verilog import emit

    top, config = module_name("engine"), inputs.config
    shifted = config.replace(scale_fraction_bits=0)
    counts = [
        count_multipliers(emit(create_block("engine", variant), top, ""), top)
        for variant in (config, shifted)
    ]
    rows: list[tuple[Cell, ...]] = [
        (row_of(block, config), *(count[block] for count in counts))
        for block in counts[0]
        if any(count[block] for count in counts)
    ]
    in_lanes = 2 * config.lanes * config.query_group
    return Section(
        "Multipliers",
        "Cells that multiply or divide in the engine's netlist. An engine that takes a vector a "
        f"cycle with multipliers in its lanes has {in_lanes} there: two for each of {config.lanes} "
        f"lanes and {config.query_group} query heads.",
        (
            Table(
                "Multiplier cells by block; blocks without any left out",
                "measured",
                "pytest tests/test_netlist.py",
                (
                    "block",
                    f"scales with {config.scale_fraction_bits} fraction bits",
                    "power-of-two scales",
                ),
                (*rows, ("all", *(sum(count.values()) for count in counts))),
            ),
        ),
    )
