"""Design-space sweep: area, cycles, bytes and quality of many configurations in one table."""

from __future__ import annotations

import csv
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.options import (
    cache_code,
    check_context,
    codes_option,
    context_option,
    liberty_option,
    preset_option,
    preset_text,
    quality_option,
)

__all__ = ["command"]


@click.command()
@preset_option
@click.option(
    "--set",
    "axes",
    multiple=True,
    metavar="FIELD=A,B,...",
    help="A field of the configuration and its values; several span a grid.",
)
@codes_option("Cache code; several are swept over.")
@context_option
@click.option("--block", metavar="NAME", help="Area of this block.  [default: the whole engine]")
@liberty_option
@quality_option
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask scheduler, for example tcp://host:8786.  [default: the processors of this machine]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Table to write: .csv or .json.",
)
def command(
    config: EngineConfig,
    axes: Sequence[str],
    codes: Sequence[str],
    tokens: int,
    block: str | None,
    library_file: Path | None,
    quality_files: Sequence[Path],
    scheduler: str | None,
    output: Path,
) -> None:
    """Area, cycles, bytes and quality of many configurations and codes, in one table.

    What has been measured is kept in the user's cache folder at once: an interrupted sweep, run
    again, goes on where it stopped.
    """
    from kvtq_hw.estimates.liberty import load_liberty
    from kvtq_hw.estimates.store import EstimateStore
    from kvtq_hw.estimates.sweep import Progress, configurations, sweep_areas, table
    from rtl.blocks import check_block, hardware_digest
    from rtl.verilog import generator_version

    if output.suffix not in (".csv", ".json"):
        raise UserError(f"--output: {str(output)!r} is not allowed; must end in .csv or .json")
    if block is not None:
        check_block(block)
    values = dict(map(_axis, axes))
    configs = configurations(config, values)
    check_context(tokens, *configs)
    liberty = load_liberty(library_file)
    read = [cache_code(text) for text in codes]

    def report(progress: Progress) -> None:
        click.echo(
            f"areas: {progress.done} of {progress.total}, {progress.from_store} from the store",
            err=True,
        )

    with _executor(scheduler) as executor:
        areas = sweep_areas(configs, block, liberty, EstimateStore(), executor, report)
    rows = table(configs, areas, read, list(values), tokens, quality_files)
    command_line = [f"kvtq-hw sweep --preset {preset_text()} --context {tokens}"]
    command_line += [f"--set {axis}" for axis in axes] + [f"--code {text}" for text in codes]
    command_line += [f"--block {block}"] if block else []
    command_line += [f"--liberty {library_file}"] if library_file else []
    command_line += [f"--quality {file}" for file in quality_files]
    head = {
        "command": " ".join([*command_line, f"-o {output}"]),
        "config": config.model_dump(),
        "tokens": tokens,
        "block": block,
        "library": {"name": liberty.name, "source": liberty.source},
        "generator": generator_version(),
        "sources": hardware_digest(block),
        "tags": {"area": "measured", "cycles": "derived", "bytes": "derived"}
        | {"bits_per_element": "derived", "perplexity_ratio": "measured"},
    }
    _write(output, head, rows)
    click.echo(f"{output}: {len(rows)} rows")


def _axis(text: str) -> tuple[str, list[int | str]]:
    """Field and values of ``field=a,b``."""
    field, _, values = text.partition("=")
    parts = values.split(",")
    if field not in EngineConfig.model_fields or not all(parts):
        raise UserError(
            f"--set: {text!r} is not allowed; must be FIELD=A,B,... with a field of the "
            f"configuration: {', '.join(EngineConfig.model_fields)}"
        )
    return field, [int(part) if part.lstrip("-").isdigit() else part for part in parts]


@contextmanager
def _executor(scheduler: str | None) -> Iterator[Executor]:
    """Processes of this machine, or the workers of a Dask cluster."""
    from kvtq_hw.estimates.area import processors

    if scheduler is None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processors(), context) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return
    from distributed import Client

    try:
        client = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler: {scheduler!r}: no Dask scheduler answers: {error}") from None
    with client, client.get_executor(pure=False) as pool:
        yield pool


def _write(output: Path, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w", encoding="utf-8", newline="") as file:
            if output.suffix == ".json":
                json.dump(head | {"rows": rows}, file, indent=2)
                file.write("\n")
            else:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise UserError(f"--output: {str(output)!r}: {error.strerror}") from None
