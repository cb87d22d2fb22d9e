"""Design-space sweep: area, cycles, bytes and quality of many configurations in one table."""

from __future__ import annotations

import math
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from kvtq_hw.commands.frame.cluster import ENDED, connected
from kvtq_hw.commands.frame.options import (
    OutputFile,
    check_context,
    code_option,
    command_line,
    context_option,
    gating_option,
    liberty_option,
    preset_option,
    quality_option,
    scheduler_option,
)
from kvtq_hw.contract.codes import DEFAULT_CODE, CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.files import csv_text, json_text, write_text

__all__ = ["command"]

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_MOST_CONFIGURATIONS = 100_000


@click.command()
@preset_option
@click.option(
    "--set",
    "axes",
    multiple=True,
    metavar="FIELD=A,B,...",
    help="A field of the configuration and its values; several span a grid.",
)
@code_option("Cache code; several are swept over.", [DEFAULT_CODE], accepts="code")
@context_option
@click.option("--block", metavar="NAME", help="Area of this block.  [default: the whole engine]")
@liberty_option
@gating_option
@quality_option
@scheduler_option("the processors of this machine")
@click.option(
    "-o",
    "--output",
    type=OutputFile(".csv", ".json"),
    required=True,
    metavar="FILE",
    help="Table to write: .csv or .json.",
)
def command(
    config: EngineConfig,
    axes: Sequence[str],
    codes: Sequence[CacheCode],
    tokens: int,
    block: str | None,
    library_file: Path | None,
    ungated: bool,
    quality_files: Sequence[Path],
    scheduler: str | None,
    output: Path,
) -> None:
    """Area, cycles, bytes and quality of many configurations and codes, in one table.

    What has been measured is kept in the user's cache folder at once: an interrupted sweep, run
    again, goes on where it stopped.
    """
    from kvtq_hw.estimates.liberty import load_liberty
    from kvtq_hw.estimates.quality_files import read_quality
    from kvtq_hw.estimates.store import user_store
    from kvtq_hw.estimates.sweep import Progress, configurations, sweep_areas, table
    from kvtq_hw.host.sources import hardware_digest
    from rtl.blocks import check_block
    from rtl.verilog import generator_version

    if block is not None:
        check_block(block)
    values = _axes(axes)
    configs = configurations(config, values)
    check_context(tokens, *configs)
    liberty = load_liberty(library_file, not ungated)
    quality = read_quality(quality_files)

    def report(progress: Progress) -> None:
        click.echo(
            f"areas: {progress.done} of {progress.total}, {progress.from_store} from the store",
            err=True,
        )

    with _executor(scheduler) as executor:
        areas = sweep_areas(configs, block, liberty, user_store(), executor, report)
    rows = table(configs, areas, codes, list(values), tokens, quality)
    deciding = ("--preset", "--context", "--set", "--code", "--block", "--liberty")
    head = {
        "command": command_line(*deciding, "--no-clock-gating", "--quality", "-o"),
        "config": config.model_dump(),
        "tokens": tokens,
        "block": block,
        "library": {"name": liberty.name, "source": liberty.source},
        "clock_gate": liberty.clock_gate_cell,
        "generator": generator_version(),
        "sources": hardware_digest(block),
        "tags": {"area": "measured", "cycles": "derived", "bytes": "derived"}
        | {"bits_per_element": "derived", "perplexity_ratio": "measured"},
    }
    is_json = output.suffix == ".json"
    text = json_text(head | {"rows": rows}) if is_json else csv_text(list(rows[0]), rows)
    write_text(output, text, "--output")
    click.echo(f"{output}: {len(rows)} rows")


def _axes(texts: Sequence[str]) -> dict[str, list[int | str]]:
    """Parse texts like ``field=a,b`` into fields and their values."""
    axes: dict[str, list[int | str]] = {}
    for text in texts:
        field, _, values = text.partition("=")
        parts = values.split(",")
        if field not in EngineConfig.model_fields or not all(parts):
            raise UserError(
                f"--set: {shown(text)} is not allowed; must be FIELD=A,B,... with a field of the "
                f"configuration: {', '.join(EngineConfig.model_fields)}"
            )
        if field in axes:
            raise UserError(f"--set: {field!r} is there twice; must be once, with all its values")
        axes[field] = [int(part) if _INTEGER.fullmatch(part) else part for part in parts]
    if math.prod(map(len, axes.values())) > _MOST_CONFIGURATIONS:
        raise UserError(f"--set: the grid has more than {_MOST_CONFIGURATIONS:,} configurations")
    return axes


@contextmanager
def _executor(scheduler: str | None) -> Iterator[Executor]:
    """Yield an executor: processes on this machine, or the workers of a Dask cluster."""
    from kvtq_hw.estimates.workers import end_with_parent, processors

    if scheduler is None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processors(), context, end_with_parent) as pool:
            try:
                yield pool
            except BrokenExecutor:
                raise UserError(ENDED) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return
    with connected(scheduler) as client, client.get_executor(pure=False) as pool:
        yield pool
