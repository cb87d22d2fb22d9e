"""FPGA resources after synthesis: ECP5, iCE40 and 7-series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from kvtq_hw.config import EngineConfig
from kvtq_hw.options import json_option, preset_option, write_json

__all__ = ["command"]


@click.command()
@preset_option
@click.option(
    "--family",
    "families",
    multiple=True,
    metavar="NAME",
    help="ecp5, ice40 or xc7; several are allowed.  [default: all]",
)
@click.option("--block", default="engine", show_default=True, metavar="NAME")
@json_option
def command(
    config: EngineConfig, families: Sequence[str], block: str, json_file: Path | None
) -> None:
    """FPGA resources after synthesis: LUTs, flip-flops, memories and multipliers.

    Before place and route: there is no clock in these numbers.
    """
    from kvtq_hw.estimates.fpga import FAMILIES, fpga_resources
    from rtl.verilog import generator_version

    results = {name: fpga_resources(config, name, block) for name in families or FAMILIES}
    click.echo(f"{config.name}, {block}: resources after synthesis (measured)")
    table = Table(box=None)
    table.add_column("family", no_wrap=True)
    kinds = ("lut", "carry", "ff", "lutram", "bram", "dsp")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for result in results.values():
        table.add_row(result["family"], *(f"{result[kind]:,}" for kind in kinds))
    Console().print(table)
    chosen = "".join(f" --family {name}" for name in families)
    report = {
        "command": f"kvtq-hw fpga --preset {config.name} --block {block}{chosen}",
        "config": config.model_dump(),
        "generator": generator_version(),
        "families": results,
    }
    write_json(json_file, report)
