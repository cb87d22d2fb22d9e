"""FPGA resources after synthesis, and the clock after place and route: ECP5, iCE40, 7-series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from kvtq_hw.commands.frame.options import command_line, json_option, preset_option, write_json
from kvtq_hw.commands.frame.tables import print_table
from kvtq_hw.contract.config import EngineConfig

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
@click.option(
    "--place-and-route",
    "routed",
    is_flag=True,
    help="Place and route as well, where the family can be: ecp5 and ice40.",
)
@click.option(
    "--timeout",
    "seconds",
    type=click.IntRange(1, 7 * 24 * 3600),
    default=1800,
    show_default=True,
    help="Seconds after which place and route of a family is given up.",
)
@json_option
def command(
    config: EngineConfig,
    families: Sequence[str],
    block: str,
    routed: bool,
    seconds: int,
    json_file: Path | None,
) -> None:
    """FPGA resources after synthesis: LUTs, flip-flops, memories and multipliers.

    With --place-and-route also what nextpnr makes of it, with the clock that it reaches (seed 1):
    the block's ports stand behind flip-flops of a harness, on the smallest device that holds them.
    """
    from kvtq_hw.estimates.fpga import FAMILIES, check_family, fpga_resources
    from kvtq_hw.estimates.place_and_route import ROUTED, place_and_route
    from kvtq_hw.host.sources import hardware_digest
    from rtl.blocks import check_block
    from rtl.verilog import generator_version

    check_block(block)
    for name in families:
        check_family(name)
    results = {name: fpga_resources(config, name, block) for name in families or FAMILIES}
    click.echo(f"{config.name}, {block}: resources after synthesis (measured)")
    table = Table(box=None)
    table.add_column("family", no_wrap=True)
    kinds = ("lut", "carry", "ff", "lutram", "bram", "dsp")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for result in results.values():
        table.add_row(result["family"], *(f"{result[kind]:,}" for kind in kinds))
    print_table(table)
    places = {}
    if routed:
        places = {
            name: place_and_route(config, name, block, seconds)
            for name in results
            if name in ROUTED
        }
        click.echo(f"{config.name}, {block}: after place and route (measured)")
        table = Table(box=None)
        table.add_column("device", no_wrap=True)
        for name in ("logic cells", "ff", "bram", "dsp", "MHz"):
            table.add_column(name, justify="right")
        for place in places.values():
            table.add_row(
                place["device"],
                *(f"{place[kind]:,}" for kind in ("logic_cells", "ff", "bram", "dsp")),
                f"{place['fmax_mhz']:.1f}",
            )
        print_table(table)
        click.echo("With the harness: a flip-flop for each bit of the ports.")
    report = {
        "command": command_line("--preset", "--block", "--family", "--place-and-route"),
        "config": config.model_dump(),
        "block": block,
        "generator": generator_version(),
        "sources": hardware_digest(block),
        "families": results,
        "place_and_route": places,
    }
    write_json(json_file, report)
