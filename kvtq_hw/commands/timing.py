"""Longest path and highest clock of each block, from the mapped netlist and a full library."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from kvtq_hw.commands.frame.options import (
    command_line,
    gating_line,
    gating_option,
    json_option,
    preset_option,
    write_json,
)
from kvtq_hw.commands.frame.tables import print_table
from kvtq_hw.contract.config import EngineConfig

__all__ = ["command"]


@click.command()
@preset_option
@click.option(
    "--liberty",
    "library_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Library of cells with their delays (.lib or .lib.gz).",
)
@click.option("--clock-mhz", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Clock that gates are sized for.")  # fmt: skip
@gating_option
@json_option
def command(
    config: EngineConfig,
    library_file: Path,
    clock_mhz: int,
    ungated: bool,
    json_file: Path | None,
) -> None:
    """Longest path and highest clock of each block, and of the whole engine.

    By OpenSTA, `sta` on PATH (Debian and Ubuntu: sudo apt install opensta). Without it the delays
    are those that abc adds up, of combinational logic alone. Before place and route: wires have no
    delay.
    """
    from kvtq_hw.estimates.liberty import load_liberty
    from kvtq_hw.estimates.timing import measure_timing
    from kvtq_hw.host.sources import hardware_digest
    from kvtq_hw.host.toolchain import opensta
    from rtl.verilog import generator_version

    liberty = load_liberty(library_file, not ungated)
    analyser = opensta()
    paths = measure_timing(config, liberty, analyser, clock_mhz=clock_mhz)
    tool = analyser.description if analyser else "abc, combinational logic alone"
    click.echo(
        f"{config.name}: longest paths in {liberty.name}, gates sized for {clock_mhz} MHz, "
        f"measured by {tool}"
    )
    table = Table(box=None)
    table.add_column("block", no_wrap=True)
    for name in ("ps", "MHz"):
        table.add_column(name, justify="right")
    for block, path in paths.items():
        style = "bold" if block == "total" else None
        table.add_row(block, f"{path.delay_ps:,.0f}", f"{path.fmax_mhz:,.0f}", style=style)
    print_table(table)
    click.echo(gating_line(liberty))
    report = {
        "command": command_line("--preset", "--liberty", "--clock-mhz", "--no-clock-gating"),
        "clock_mhz": clock_mhz,
        "config": config.model_dump(),
        "library": {"name": liberty.name, "source": liberty.source},
        "clock_gate": liberty.clock_gate_cell,
        "tool": tool,
        "generator": generator_version(),
        "sources": hardware_digest(),
        "paths": {block: path.as_dict() for block, path in paths.items()},
    }
    write_json(json_file, report)
