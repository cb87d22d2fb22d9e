"""Engines side by side at equal lanes, equal tokens per second and equal memory bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from rich.table import Table

from kvtq_hw.commands.frame.options import (
    check_context,
    code_option,
    command_line,
    context_option,
    gating_line,
    gating_option,
    json_option,
    preset_option,
    quality_option,
    write_json,
)
from kvtq_hw.commands.frame.tables import print_table
from kvtq_hw.contract.codes import STANDARD_CODES, CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig

__all__ = ["CODES", "command"]

#: One digit in the body loses too much to be a candidate (docs/quality.md).
CODES = STANDARD_CODES[:-1]


@click.command()
@preset_option
@code_option("Ternary cache code, or the .toml file of a table with digits for each layer.", CODES)
@context_option
@click.option("--memory-bits", type=click.IntRange(1, 1 << 16), default=64, show_default=True,
              help="Bits that memory delivers per cycle.")  # fmt: skip
@click.option("--no-areas", "without_areas", is_flag=True,
              help="Cycles and bytes alone, in a second: areas take minutes.")  # fmt: skip
@gating_option
@quality_option
@json_option
def command(
    config: EngineConfig,
    codes: Sequence[CacheCode | CodeTable],
    tokens: int,
    memory_bits: int,
    without_areas: bool,
    ungated: bool,
    quality_files: Sequence[Path],
    json_file: Path | None,
) -> None:
    """Engines side by side at equal lanes, equal tokens per second and equal memory bandwidth.

    One KV head at one context, one clock for all. Areas are measured on netlists, memories aside;
    cycles and bytes are derived from the cycle model and the layout of stored vectors. A table's
    are those of the mean layer. Sliding windows that a table or code says hold for all engines.
    """
    from kvtq_hw.estimates.area import measure_area
    from kvtq_hw.estimates.candidates import integers, sliding_windows, ternary
    from kvtq_hw.estimates.comparison import (
        Measure,
        equal_bandwidth,
        equal_lanes,
        equal_speed,
    )
    from kvtq_hw.estimates.liberty import load_liberty
    from kvtq_hw.estimates.quality_files import quality_of, read_quality
    from kvtq_hw.host.sources import hardware_digest
    from rtl.verilog import generator_version

    check_context(tokens, config)
    measured = read_quality(quality_files)
    windows = sliding_windows(codes)
    candidates = [ternary(config, code, windows) for code in codes] + integers(config, windows)
    liberty = load_liberty(None, not ungated)
    measure: Measure = partial(measure_area, liberty=liberty)
    measure = _no_area if without_areas else measure
    lanes = equal_lanes(candidates, config.lanes, tokens, measure)
    int8 = next(row.cycles for row in lanes if row.name == "INT8")
    speed = equal_speed(candidates, int8, tokens, measure)
    bandwidth = equal_bandwidth(candidates, memory_bits, tokens, measure)
    ways = {
        f"equal lanes: {config.lanes}": lanes,
        f"equal speed: INT8's {int8:,} cycles, 5 % more at most": speed,
        f"equal memory bandwidth: {memory_bits} bits per cycle": bandwidth,
    }
    for title, rows in ways.items():
        click.echo(f"{config.name}, {tokens} tokens, {title}")
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("engine", no_wrap=True)
        areas = () if without_areas else ("um2", "um2 a lane")
        for name in ("lanes", "planes", *areas, "cycles", "bytes", "perplexity"):
            table.add_column(name, justify="right")
        for row in rows:
            quality = quality_of(row.code, measured)
            table.add_row(
                row.name,
                str(row.lanes),
                f"{row.key_planes}/{row.value_planes}",
                *(f"{um2:,.0f}" for um2 in (row.um2, row.lane_um2) if um2 is not None),
                f"{row.effective_cycles:,}",
                f"{row.bytes:,}",
                f"x{quality['perplexity_ratio']:.4f}" if quality else "-",
            )
        print_table(table)
    if not without_areas:
        click.echo(gating_line(liberty))
        click.echo("um2 is measured.")
    click.echo("Cycles and bytes are derived, perplexity is measured.")
    if any(row.layers > 1 for row in lanes):
        click.echo("Cycles and bytes of several layers are their mean, rounded up.")
    deciding = ("--preset", "--context", "--memory-bits", "--no-areas", "--no-clock-gating")
    report = {
        "command": command_line(*deciding, "--code", "--quality"),
        "config": config.model_dump(),
        "clock_gate": liberty.clock_gate_cell,
        "generator": generator_version(),
        "sources": hardware_digest(),
        "tokens": tokens,
        "ways": {
            title: [row.as_dict() | {"quality": quality_of(row.code, measured)} for row in rows]
            for title, rows in ways.items()
        },
    }
    write_json(json_file, report)


def _no_area(config: EngineConfig) -> None:
    """Measure nothing."""
