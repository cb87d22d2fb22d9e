"""Run the cocotb benches of blocks on a simulator."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvtq_hw.commands.frame.options import (
    OutputFolder,
    command_line,
    json_option,
    preset_option,
    write_json,
)
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.host.steps import show_steps
from kvtq_hw.host.toolchain import SIMULATORS

if TYPE_CHECKING:
    from sim.bench.runner import BenchResult

__all__ = ["command"]


@click.command()
@click.argument("blocks", nargs=-1, metavar="[BLOCK]...")
@preset_option
@click.option(
    "--simulator",
    type=click.Choice(list(SIMULATORS)),
    default="verilator",
    show_default=True,
    help="Simulator to run on.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=1,
    show_default=True,
    help="Random seed: the same seed repeats a run.",
)
@click.option("--test", "testcase", metavar="NAME", help="Only tests whose name ends with this.")
@click.option(
    "--waves",
    is_flag=True,
    help="Record all signals (Verilator: VCD, Icarus: FST), with a view for GTKWave.",
)
@click.option(
    "--build-folder",
    type=OutputFolder(),
    default=Path("build/sim"),
    show_default=True,
    help="Build cache, logs and waves.",
)
@json_option
def command(
    blocks: tuple[str, ...],
    config: EngineConfig,
    simulator: str,
    seed: int,
    testcase: str | None,
    waves: bool,
    build_folder: Path,
    json_file: Path | None,
) -> int:
    """Run the benches of BLOCKs, or of all blocks if none is named.

    Every output is compared, bit for bit, with the golden model. Exit status 1 if a test failed.
    """
    from rich.console import Console
    from rich.table import Table

    from rtl.blocks import blocks_of, check_block
    from sim.bench.runner import run_bench

    for block in blocks:
        check_block(block)
    console = Console()
    step = show_steps(console)
    table = Table(title=f"{config.name} on {simulator}, seed {seed}")
    table.add_column("block")
    for column in ("tests", "passed", "failed", "seconds"):
        table.add_column(column, justify="right")
    results = []
    for block in blocks or blocks_of(config):
        with step(f"{block} on {simulator}"):
            result = run_bench(
                block,
                config,
                simulator,
                seed=seed,
                folder=build_folder,
                waves=waves,
                testcase=testcase,
            )
        results.append(result)
        failed = len(result.failed)
        table.add_row(
            block,
            str(len(result.tests)),
            str(len(result.tests) - failed),
            f"[red]{failed}[/red]" if failed else "0",
            f"{sum(test.seconds for test in result.tests):.1f}",
        )
    console.print(table)
    for result in results:
        for test in result.failed:
            click.echo(f"{result.block}: {test.name}: {test.message}")
        if result.failed:
            click.echo(f"{result.block}: log: {result.log}")
        if result.waves:
            click.echo(f"{result.block}: waves: {result.waves}")
    write_json(
        json_file,
        {
            "command": command_line("blocks", "--preset", "--simulator", "--seed", "--test"),
            "config": config.model_dump(),
            "simulator": simulator,
            "seed": seed,
            "blocks": {result.block: _result(result) for result in results},
        },
    )
    return int(any(result.failed for result in results))


def _result(result: BenchResult) -> dict[str, Any]:
    """Return plain values of a bench's run."""
    return {
        "tests": [asdict(test) for test in result.tests],
        "passed": len(result.tests) - len(result.failed),
        "failed": len(result.failed),
        "log": str(result.log),
        "waves": None if result.waves is None else str(result.waves),
    }
