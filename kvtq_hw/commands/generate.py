"""Write Verilog, manifests and lint waivers of engine and accelerator, and the C header."""

from __future__ import annotations

from pathlib import Path

import click

from kvtq_hw.commands.frame.options import OutputFolder, preset_option
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.files import check_folder, json_text, write_text

__all__ = ["command", "generate"]


def generate(config: EngineConfig, folder: Path) -> list[Path]:
    """Write ``.v``, ``.json`` and ``.vlt`` of accelerator and engine, and ``kvtq_registers.h``.

    The same configuration gives the same bytes.

    Raises
    ------
    UserError
        When the folder cannot be written.
    """
    from kvtq_hw.contract.registers import c_header
    from rtl.blocks import create_block, emit_block, module_name
    from rtl.manifest import manifest
    from rtl.verilog import lint_waivers

    check_folder(folder, "output")
    texts: dict[str, str] = {}
    for block in ("accelerator", "engine"):
        top = module_name(block)
        files = [f"{top}.v", f"{top}.json", f"{top}.vlt", "kvtq_registers.h"]
        description = manifest(create_block(block, config), top, config, files)
        of_block = emit_block(block, config), json_text(description), lint_waivers(), c_header()
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
def command(config: EngineConfig, output: Path | None) -> None:
    """Write Verilog, manifests and lint waivers, and the registers' C header.

    The accelerator is the whole of it, behind AXI ports; the engine is its attention core alone.

    \b
    kvtq_accelerator.v     Verilog-2005, the whole hierarchy in one file
    kvtq_accelerator.json  ports, payload fields, widths, latencies
    kvtq_accelerator.vlt   waivers for verilator --lint-only -Wall, each with its reason
    kvtq_engine.*          the same of the engine
    kvtq_registers.h       addresses and fields of the registers, for C
    """
    for path in generate(config, output or Path("build") / config.name):
        click.echo(path)
