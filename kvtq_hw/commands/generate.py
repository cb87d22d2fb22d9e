"""Write Verilog, manifests and lint waivers of engine and accelerator, and the C header."""

from __future__ import annotations

from pathlib import Path

import click

from kvtq_hw.commands.frame.options import OutputFolder, preset_option
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.files import check_folder, json_text, write_text
from rtl.reset import Reset

__all__ = ["command", "generate"]


def generate(
    config: EngineConfig,
    folder: Path,
    prefix: str | None = None,
    *,
    reset: Reset = Reset.SYNC_HIGH,
    initial_values: bool = True,
) -> list[Path]:
    """Write ``.v``, ``.json`` and ``.vlt`` of accelerator and engine, and ``kvtq_registers.h``.

    The same configuration gives the same bytes.

    Parameters
    ----------
    prefix : beginning of the names of modules and files; None for ``kvtq_<name>``, with the name of
        the configuration
    reset : kind of the reset
    initial_values : whether registers that have a reset also have an initial value

    Raises
    ------
    UserError
        When the folder cannot be written, or the prefix begins no name in Verilog.
    """
    from kvtq_hw.contract.registers import c_header
    from rtl.blocks import create_block, emit_block, module_name, prefix_of
    from rtl.manifest import manifest
    from rtl.verilog import lint_waivers

    check_folder(folder, "output")
    prefix = prefix_of(config) if prefix is None else prefix
    texts: dict[str, str] = {}
    for block in ("accelerator", "engine"):
        top = module_name(block, prefix)
        files = [f"{top}.v", f"{top}.json", f"{top}.vlt", "kvtq_registers.h"]
        description = manifest(create_block(block, config), top, config, files, reset)
        verilog = emit_block(block, config, prefix, reset=reset, initial_values=initial_values)
        of_block = verilog, json_text(description), lint_waivers(), c_header()
        texts |= dict(zip(files, of_block, strict=True))
    for name, text in texts.items():
        write_text(folder / name, text, "output")
    return [folder / name for name in texts]


@click.command()
@preset_option
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    metavar="FOLDER",
    help="Folder for the files.  [default: build/<name of the configuration>]",
)
@click.option(
    "--prefix",
    metavar="NAME",
    help="Beginning of every module's name.  [default: kvtq_<name of the configuration>]",
)
@click.option(
    "--reset",
    type=click.Choice([kind.value for kind in Reset]),
    default=Reset.SYNC_HIGH.value,
    show_default=True,
    help="Kind of the reset: port rst, or rst_n if low; an asynchronous one must end in time with "
    "the clock.",
)
@click.option(
    "--initial-values/--no-initial-values",
    default=True,
    show_default=True,
    help="Give registers that have a reset an initial value too, as FPGAs and simulators like it.",
)
def command(
    config: EngineConfig,
    output: Path | None,
    prefix: str | None,
    reset: str,
    initial_values: bool,
) -> None:
    """Write Verilog, manifests and lint waivers, and the registers' C header.

    The accelerator is the whole of it, behind AXI ports; the engine is its attention core alone.

    \b
    PREFIX_accelerator.v     Verilog-2005, the whole hierarchy in one file
    PREFIX_accelerator.json  ports, payload fields, widths, latencies
    PREFIX_accelerator.vlt   waivers for verilator --lint-only -Wall, each with its reason
    PREFIX_engine.*          the same of the engine
    kvtq_registers.h         addresses and fields of the registers, for C

    Every module's name begins with the prefix, so that several configurations, and several copies
    of one, live in one design.
    """
    folder = output or Path("build") / config.name
    for path in generate(config, folder, prefix, reset=Reset(reset), initial_values=initial_values):
        click.echo(path)
