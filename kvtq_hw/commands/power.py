"""Energy of one captured attention: toggles of the netlist's nets, times what the library says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from kvtq_hw.commands.frame.options import (
    OutputFolder,
    command_line,
    gating_line,
    gating_option,
    json_option,
    liberty_option,
    write_json,
)
from kvtq_hw.commands.frame.tables import print_table
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import scratch_folder
from kvtq_hw.estimates.traffic import MODELS

if TYPE_CHECKING:
    from golden.llm.capture import Captured
    from sim.bench.recording import Recording

__all__ = ["command"]

VARIANTS = ("captured", "no-zero-keys", "no-zero-values", "int8", "int4")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--variant",
    "variants",
    type=click.Choice(VARIANTS),
    multiple=True,
    default=("captured",),
    show_default=True,
    help="As captured; with each zero digit of keys or values replaced; the same vectors, before "
    "they were rounded to digits, as integers on an engine with multipliers. Several are allowed.",
)
@click.option(
    "--shape",
    type=click.Choice([name for name, model in MODELS.items() if not model.sliding]),
    help="Model whose layers and KV heads make an energy per token; all its layers are alike.",
)
@liberty_option
@gating_option
@click.option(
    "--build-folder",
    type=OutputFolder(),
    default=Path("build/sim"),
    show_default=True,
    help="Build cache and logs of the simulation.",
)
@json_option
def command(
    file: Path,
    variants: Sequence[str],
    shape: str | None,
    library_file: Path | None,
    ungated: bool,
    build_folder: Path,
    json_file: Path | None,
) -> None:
    """Energy of the attention that FILE of `kvtq-hw capture` holds, block by block.

    The RTL runs it on Verilator, the mapped netlist repeats what the ports saw, and each change of
    a net costs C V^2 / 2 of the pins behind it. Without wires, glitches and clock tree: toggles are
    measured, energies projected. A full library adds the energies inside cells.
    """
    from golden.llm.capture import load_captured
    from kvtq_hw.estimates.liberty import load_liberty
    from kvtq_hw.estimates.power import measure_power
    from kvtq_hw.host.sources import hardware_digest
    from rtl.verilog import generator_version

    captured, liberty = load_captured(file), load_liberty(library_file, not ungated)
    model = MODELS[shape] if shape else None
    reports = {}
    for variant in variants:
        job = _variant(captured, variant)
        report = measure_power(job.config, _record(job, build_folder), liberty)
        reports[variant] = report
        click.echo(
            f"{job.config.name}, {variant}: layer {job.layer}, KV head {job.head}, "
            f"{len(job.key_depths)} tokens, {report.cycles:,} cycles; energies in pJ, projected"
        )
        table = Table(box=None)
        table.add_column("block", no_wrap=True)
        for name in ("toggles", "nets", "clock", "in cells", "total"):
            table.add_column(name, justify="right")
        for name, block in (*report.blocks.items(), ("total", report.total)):
            table.add_row(
                name,
                f"{block.toggles:,}",
                f"{block.switching_pj:,.0f}",
                f"{block.clock_pj:,.0f}",
                f"{block.internal_pj:,.0f}" if report.internal else "-",
                f"{block.total_pj:,.0f}",
                style="bold" if name == "total" else None,
            )
        print_table(table)
        if model:
            energy = report.total.total_pj * model.layers * model.kv_heads
            click.echo(f"{shape}: {energy / 1e6:,.3f} uJ a token, all layers and KV heads alike")
    click.echo(gating_line(liberty))
    place = {name: getattr(captured, name) for name in ("layer", "head", "step")}
    write_json(
        json_file,
        {
            "command": command_line(
                "file", "--variant", "--shape", "--liberty", "--no-clock-gating"
            ),
            "config": captured.config.model_dump(),
            "generator": generator_version(),
            "sources": hardware_digest(),
            **place,
            "tokens": len(captured.key_depths),
            "attentions_per_token": model.layers * model.kv_heads if model else None,
            "variants": {name: report.as_dict() for name, report in reports.items()},
        },
    )


def _variant(captured: Captured, variant: str) -> Captured:
    """Return the captured job, or a variant of it."""
    from golden.study.job_variants import as_integers, without_zeros

    if variant in ("int8", "int4"):
        return as_integers(captured, variant)
    if variant.startswith("no-zero-"):
        return without_zeros(captured, variant.removeprefix("no-zero-"))
    return captured


def _record(job: Captured, build_folder: Path) -> Recording:
    """Run a job on the RTL and record the engine's port values."""
    from rtl.blocks import create_block
    from sim.bench.recording import RECORD_VARIABLE, load_recording
    from sim.bench.runner import run_bench
    from sim.replay import FILE_VARIABLE

    with scratch_folder() as folder:
        file, ports = folder / "job.safetensors", folder / "ports"
        job.save(file)
        result = run_bench(
            "engine",
            job.config,
            "verilator",
            seed=1,
            folder=build_folder,
            module="sim.replay",
            variables={FILE_VARIABLE: str(file), RECORD_VARIABLE: str(ports)},
        )
        if result.failed:
            raise UserError(f"power: {result.failed[0].message}; log: {result.log}")
        return load_recording(create_block("engine", job.config), ports)
