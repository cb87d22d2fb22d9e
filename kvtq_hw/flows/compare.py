"""Engines side by side at equal lanes, equal tokens a second and equal memory bandwidth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from kvtq_hw.codes import CacheCode, read_code
from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.options import preset_option

__all__ = ["command"]

_CODES = (
    "balanced:3/2,sinks=4,window=32,feedback",
    "balanced:2/2,sinks=4,window=32,feedback",
    "balanced:2/1,sinks=4,window=32,feedback",
)


@click.command()
@preset_option
@click.option(
    "--code",
    "codes",
    multiple=True,
    default=_CODES,
    metavar="CODE",
    help="Ternary cache code; the first is the reference.  [default: K3/V2, K2/V2 and K2/V1]",
)
@click.option("--context", "tokens", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--memory-bits", type=click.IntRange(1), default=64, show_default=True,
              help="Bits that memory delivers a cycle.")  # fmt: skip
@click.option(
    "--quality",
    "quality_files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Results of `kvtq-hw eval`, for the quality of each code.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the numbers.",
)
def command(
    config: EngineConfig,
    codes: Sequence[str],
    tokens: int,
    memory_bits: int,
    quality_files: Sequence[Path],
    json_file: Path | None,
) -> None:
    """Engines side by side at equal lanes, equal tokens a second and equal memory bandwidth.

    One KV head at one context, one clock for all. Areas are measured on netlists, memories aside;
    cycles and bytes are derived from the cycle model and the layout of stored vectors.
    """
    from kvtq_hw.estimates.area import measure_area
    from kvtq_hw.estimates.comparison import (
        equal_bandwidth,
        equal_lanes,
        equal_speed,
        integers,
        quality_of,
        ternary,
    )

    candidates = []
    for text in codes:
        code = read_code(text)
        if not isinstance(code, CacheCode):
            raise UserError(f"--code: {text!r} is a table; allowed are codes such as balanced:3/2")
        candidates.append(ternary(config, code))
    candidates += integers(config)
    if tokens > config.max_context:
        raise UserError(f"--context: {tokens} is more than max_context {config.max_context}")
    lanes = equal_lanes(candidates, config.lanes, tokens, measure_area)
    speed = equal_speed(candidates, lanes[0], tokens, measure_area)
    bandwidth = equal_bandwidth(candidates, memory_bits, tokens, measure_area)
    ways = {
        f"equal lanes: {config.lanes}": lanes,
        f"equal speed: at most {lanes[0].cycles:,} cycles": speed,
        f"equal memory bandwidth: {memory_bits} bits a cycle": bandwidth,
    }
    for title, rows in ways.items():
        click.echo(f"{config.name}, {tokens} tokens, {title}")
        table = Table(box=None)
        table.add_column("engine", no_wrap=True)
        for name in ("lanes", "um2", "um2 a lane", "cycles", "bytes", "perplexity"):
            table.add_column(name, justify="right")
        for row in rows:
            quality = quality_of(row.code, quality_files)
            table.add_row(
                row.name,
                str(row.lanes),
                f"{row.um2:,.0f}",
                f"{row.lane_um2:,.0f}",
                f"{row.effective_cycles:,}",
                f"{row.bytes:,}",
                f"x{quality['perplexity_ratio']:.3f}" if quality else "-",
            )
        Console().print(table)
    click.echo("um2 is measured, cycles and bytes are derived, perplexity is measured.")
    if json_file is not None:
        report = {
            "command": f"kvtq-hw compare --preset {config.name} --context {tokens} "
            f"--memory-bits {memory_bits}" + "".join(f" --code {code}" for code in codes),
            "config": config.model_dump(),
            "tokens": tokens,
            "ways": {
                title: [
                    row.as_dict() | {"quality": quality_of(row.code, quality_files)} for row in rows
                ]
                for title, rows in ways.items()
            },
        }
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json: {str(json_file)!r}: {error.strerror}") from None
