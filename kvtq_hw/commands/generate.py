"""Write Verilog with what belongs to a core: manifests, constraints, register models, a driver."""

from __future__ import annotations

from pathlib import Path

import click

from kvtq_hw import __version__
from kvtq_hw.commands.frame.archive import ARCHIVES, archive_bytes, licence_text
from kvtq_hw.commands.frame.options import (
    OutputFile,
    OutputFolder,
    command_line,
    json_option,
    preset_option,
    write_json,
)
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.files import check_folder, json_text, write_bytes, write_text
from rtl.reset import Reset

__all__ = ["command", "generate"]

_SEED = 1  # of a testbench's random jobs


def generate(
    config: EngineConfig,
    folder: Path,
    prefix: str | None = None,
    *,
    reset: Reset = Reset.SYNC_HIGH,
    initial_values: bool = True,
    testbench: Path | int | None = None,
    archive: Path | None = None,
) -> list[Path]:
    """Write accelerator and engine (``.v``, ``.json``, ``.vlt``, ``.sdc``, ``.core``) and the rest.

    The rest is the accelerator's: IP-XACT (``.xml``), the register map as models for UVM and C, and
    the driver in C. The same configuration gives the same bytes.

    Parameters
    ----------
    prefix : beginning of the names of modules and files; None for ``kvtq_<name>``, with the name of
        the configuration
    reset : kind of the reset
    initial_values : whether registers that have a reset also have an initial value
    testbench : write a testbench of the accelerator too (``PREFIX_accelerator_tb.v`` and its
        vectors), with the attention of a captured file, or with random jobs of this seed
    archive : write all files and the licence into this archive (`ARCHIVES`) too, under a folder
        ``PREFIX-VERSION``

    Raises
    ------
    UserError
        When the folder cannot be written, the prefix begins no name in Verilog, or the captured
        attention cannot be read or is of another configuration.
    """
    from rtl.blocks import create_block, emit_block, module_name, prefix_of
    from rtl.constraints import timing_constraints
    from rtl.core_file import core_file
    from rtl.ipxact import ipxact_component
    from rtl.manifest import manifest
    from rtl.verilog import lint_waivers

    check_folder(folder, "output")
    licence = "" if archive is None else licence_text()
    prefix = prefix_of(config) if prefix is None else prefix
    blocks = {name: create_block(name, config) for name in ("accelerator", "engine")}
    bench = {} if testbench is None else _testbench(config, testbench, prefix, reset)
    of_registers = _register_files()
    texts: dict[str, str] = {}
    for block, component in blocks.items():
        top = module_name(block, prefix)
        files = [f"{top}.{ending}" for ending in ("v", "json", "vlt", "sdc", "core")]
        if block == "accelerator":
            files += [f"{top}.xml", *of_registers]
        description = manifest(component, top, config, files, reset)
        texts[f"{top}.v"] = emit_block(
            block, config, prefix, reset=reset, initial_values=initial_values
        )
        texts[f"{top}.json"] = json_text(description)
        texts[f"{top}.vlt"] = lint_waivers()
        texts[f"{top}.sdc"] = timing_constraints(description)
        texts[f"{top}.core"] = core_file(top, config, list(bench) if block == "accelerator" else ())
        if block == "accelerator":
            texts[f"{top}.xml"] = ipxact_component(description)
            texts |= of_registers
    texts |= bench
    for name, text in texts.items():
        write_text(folder / name, text, "output")
    paths = [folder / name for name in texts]
    if archive is not None:
        root = f"{prefix}-{__version__}"
        packed = {f"{root}/{name}": text for name, text in (*texts.items(), ("LICENSE", licence))}
        write_bytes(archive, archive_bytes(archive.name, packed), "archive")
        paths.append(archive)
    return paths


def _register_files() -> dict[str, str]:
    """Return the texts of the register map, its models, and the driver."""
    from kvtq_hw.contract.registers import c_header, rdl_text, uvm_package
    from sim.host.c_driver import c_driver

    return {
        "kvtq_registers.rdl": rdl_text(),
        "kvtq_registers_pkg.sv": uvm_package("kvtq_registers_pkg"),
        "kvtq_registers.h": c_header(),
        **c_driver(),
    }


def _testbench(
    config: EngineConfig, source: Path | int, prefix: str, reset: Reset
) -> dict[str, str]:
    """Return the files of a testbench: of a captured file's job, or of random jobs of a seed."""
    from rtl.blocks import module_name
    from sim.plain.captured_job import captured_session
    from sim.plain.random_jobs import random_session
    from sim.plain.testbench import files_of_testbench

    if isinstance(source, int):
        session = random_session(config, source)
    else:
        session = captured_session(config, source)
    return files_of_testbench(module_name("accelerator", prefix), session, reset)


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
@click.option(
    "--testbench",
    is_flag=False,
    flag_value="",
    metavar="[CAPTURE]",
    help="Write a testbench too: of a file of `kvtq-hw capture`, or of random jobs.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help=f"Random seed of the testbench's jobs.  [default: {_SEED}]",
)
@click.option(
    "--archive",
    type=OutputFile(*ARCHIVES),
    metavar="FILE",
    help=f"Write all files and the licence into an archive too ({' or '.join(ARCHIVES)}).",
)
@json_option
def command(
    config: EngineConfig,
    output: Path | None,
    prefix: str | None,
    reset: str,
    initial_values: bool,
    testbench: str | None,
    seed: int | None,
    archive: Path | None,
    json_file: Path | None,
) -> None:
    """Write Verilog and what belongs to a core: manifest, constraints, register models, a driver.

    The accelerator is the whole of it, behind AXI ports; the engine is its attention core alone.

    \b
    PREFIX_accelerator.v     Verilog-2005, the whole hierarchy in one file
    PREFIX_accelerator.json  ports, payload fields, widths, latencies
    PREFIX_accelerator.vlt   waivers for verilator --lint-only -Wall, each with its reason
    PREFIX_accelerator.sdc   timing constraints, a template: clock and delays are variables
    PREFIX_accelerator.core  targets lint, synth and, with a testbench, sim for FuseSoC
    PREFIX_accelerator.xml   IP-XACT: ports, bus interfaces, registers, files
    PREFIX_engine.*          the same of the engine, without IP-XACT
    kvtq_registers.rdl       the registers in SystemRDL, the source of the next two
    kvtq_registers_pkg.sv    model of the registers for UVM
    kvtq_registers.h         addresses and fields of the registers, for C
    kvtq_driver.h, .c        driver in freestanding C11; the header says how it is used

    With --testbench, which needs the extras golden and sim:

    \b
    PREFIX_accelerator_tb.v        a testbench that checks itself, for any simulator; how to run
                                   it stands in its first lines
    PREFIX_accelerator_vectors/    its vectors as hexadecimal text, described by index.json

    With --archive, which is the same bytes in every run:

    \b
    FILE                           all of it and the licence, in a folder PREFIX-VERSION

    Every module's name begins with the prefix, so that several configurations, and several copies
    of one, live in one design.
    """
    if seed is not None and testbench != "":
        raise click.UsageError("--seed: only with --testbench without CAPTURE")
    jobs: Path | int | None = None if testbench is None else Path(testbench)
    if testbench == "":
        jobs = _SEED if seed is None else seed
    folder = output or Path("build") / config.name
    paths = generate(
        config,
        folder,
        prefix,
        reset=Reset(reset),
        initial_values=initial_values,
        testbench=jobs,
        archive=archive,
    )
    for path in paths:
        click.echo(path)
    deciding = ("--preset", "-o", "--prefix", "--reset", "--testbench", "--seed", "--archive")
    write_json(
        json_file,
        {
            "command": command_line(*deciding),
            "config": config.model_dump(),
            "files": [str(path) for path in paths],
        },
    )
