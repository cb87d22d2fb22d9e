"""Run one captured attention on the engine in a simulator, compared with the golden model."""

from __future__ import annotations

from pathlib import Path

import click

from kvtq_hw.commands.frame.options import OutputFolder, command_line, json_option, write_json
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.toolchain import SIMULATORS

__all__ = ["command"]


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--simulator",
    type=click.Choice(list(SIMULATORS)),
    default="verilator",
    show_default=True,
    help="Simulator to run on.",
)
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
    file: Path, simulator: str, waves: bool, build_folder: Path, json_file: Path | None
) -> int:
    """Run the attention that FILE of `kvtq-hw capture` holds on a simulator.

    Every output, counter and the number of cycles are compared. Exit status 1 if any differs.
    """
    import torch

    from golden.llm.capture import load_captured
    from sim.bench.runner import run_bench
    from sim.replay import FILE_VARIABLE, replayed_cycles

    job = load_captured(file)
    if not torch.equal(job.golden(), job.expected):
        raise UserError(f"{str(file)!r}: the golden model of today gives other outputs")
    result = run_bench(
        "engine",
        job.config,
        simulator,
        seed=1,
        folder=build_folder,
        waves=waves,
        module="sim.replay",
        variables={FILE_VARIABLE: str(file.resolve())},
    )
    place = f"layer {job.layer}, KV head {job.head}, step {job.step}"
    for test in result.failed:
        click.echo(f"{place}: {test.message}; log: {result.log}")
    if not result.failed:
        click.echo(
            f"{place}: {job.expected.numel()} outputs equal, {len(job.key_depths)} tokens in "
            f"{replayed_cycles(job)} cycles on {simulator}"
        )
    if result.waves:
        click.echo(f"waves: {result.waves}")
    write_json(
        json_file,
        {
            "command": command_line("file", "--simulator"),
            "config": job.config.model_dump(),
            "simulator": simulator,
            "layer": job.layer,
            "head": job.head,
            "step": job.step,
            "tokens": len(job.key_depths),
            "outputs_compared": job.expected.numel(),
            "cycles": replayed_cycles(job),
            "differences": [test.message for test in result.failed],
            "log": str(result.log),
            "waves": None if result.waves is None else str(result.waves),
        },
    )
    return int(bool(result.failed))
