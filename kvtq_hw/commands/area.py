"""Area of an engine by block: cells, square micrometres, NAND2 equivalents, transistors."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from kvtq_hw.commands.frame.options import (
    command_line,
    gating_line,
    gating_option,
    json_option,
    liberty_option,
    preset_option,
    write_json,
)
from kvtq_hw.commands.frame.tables import print_table
from kvtq_hw.contract.config import EngineConfig

__all__ = ["command"]


@click.command()
@preset_option
@click.option("--block", metavar="NAME", help="Only this block.  [default: the whole engine]")
@liberty_option
@gating_option
@json_option
def command(
    config: EngineConfig,
    block: str | None,
    library_file: Path | None,
    ungated: bool,
    json_file: Path | None,
) -> None:
    """Area of an engine by block: cells, square micrometres, NAND2 equivalents, transistors.

    Measured on the netlist after Yosys and abc: cells alone, without wires and utilization.
    Memories are not in the area: their bits stand beside it. What has been mapped once is kept in
    the user's cache folder.
    """
    from kvtq_hw.estimates.area import measure_area
    from kvtq_hw.estimates.liberty import load_liberty

    liberty = load_liberty(library_file, not ungated)
    report = measure_area(config, block, liberty)
    click.echo(f"{config.name}: area in cells of {report.library}, measured on the netlist")
    table = Table(box=None)
    table.add_column("block", no_wrap=True)
    for name in ("um2", "NAND2", "cells", "FF", "RAM bits", "transistors"):
        table.add_column(name, justify="right", no_wrap=True)
    total = report.total
    rows = [*report.blocks.items(), *([("total", total)] if block is None else [])]
    for name, area in rows:
        table.add_row(
            name if area.instances == 1 or name == "total" else f"{name} x{area.instances}",
            f"{area.um2:,.0f}",
            f"{area.nand2:,.0f}",
            f"{sum(area.cells.values()):,}",
            f"{area.flip_flops:,}",
            f"{area.memory_bits:,}",
            f"{area.transistors:,}",
            style="bold" if name == "total" else None,
        )
    print_table(table)
    click.echo("Bits in RAM are apart: no area is counted for them. Transistors: of generic gates.")
    click.echo(gating_line(liberty))
    command = command_line("--preset", "--block", "--liberty", "--no-clock-gating")
    write_json(json_file, {"command": command} | report.as_dict())
