"""Write the engine's Verilog, its manifest, its lint waivers and the registers' C header."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.options import preset_option

__all__ = ["command", "generate"]


def generate(config: EngineConfig, folder: Path) -> list[Path]:
    """Write ``kvtq_engine.v``, ``.json``, ``.vlt`` and ``kvtq_registers.h`` into `folder`.

    The same configuration gives the same bytes.

    Raises
    ------
    UserError
        The folder cannot be written.
    """
    from kvtq_hw.registers import c_header
    from rtl.blocks import create_block, emit_block, module_name
    from rtl.manifest import manifest
    from rtl.verilog import lint_waivers

    top = module_name("engine")
    files = [f"{top}.v", f"{top}.json", f"{top}.vlt", "kvtq_registers.h"]
    paths = [folder / name for name in files]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        description = manifest(create_block("engine", config), top, config, files)
        texts = (
            emit_block("engine", config),
            json.dumps(description, indent=2) + "\n",
            lint_waivers(),
            c_header(),
        )
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"output: cannot write to {str(folder)!r}: {error.strerror}") from None
    return paths


@click.command()
@preset_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder for the files.  [default: build/<name of the configuration>]",
)
def command(config: EngineConfig, output: Path | None) -> None:
    """Write the engine's Verilog, its manifest, its lint waivers and the registers' C header.

    \b
    kvtq_engine.v     Verilog-2005, the whole hierarchy in one file
    kvtq_engine.json  ports, payload fields, widths, latencies
    kvtq_engine.vlt   waivers for verilator --lint-only -Wall, each with its reason
    kvtq_registers.h  addresses and fields of the registers, for C
    """
    for path in generate(config, output or Path("build") / config.name):
        click.echo(path)
