"""Bits, bytes and energy of a decoded token of a whole model, in ternary codes, INT4 and INT8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from kvtq_hw.commands.frame.options import (
    check_context,
    code_option,
    command_line,
    context_option,
    json_option,
    memory_option,
    model_shape_options,
    preset_option,
    results_option,
    write_json,
)
from kvtq_hw.commands.frame.tables import print_table
from kvtq_hw.contract.codes import STANDARD_CODES, CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError

if TYPE_CHECKING:
    from kvtq_hw.estimates.candidates import Candidate
    from kvtq_hw.estimates.system_energy import Measured, System

__all__ = ["command"]


@click.command()
@preset_option
@model_shape_options
@code_option("Ternary cache code, or the .toml file of a table with digits for each layer.",
             STANDARD_CODES[:-1])  # fmt: skip
@context_option
@memory_option
@results_option("power")
@json_option
def command(
    config: EngineConfig,
    layers: int,
    kv_heads: int,
    codes: Sequence[CacheCode | CodeTable],
    tokens: int,
    memory_pj: float,
    results: Path,
    json_file: Path | None,
) -> None:
    """Energy of a decoded token: engine, memories on the chip and KV memory of all layers.

    Bits and bytes are derived. The engine's energy is that of recorded attentions of `kvtq-hw
    power`, scaled to this model and context; on chip and KV memory are projected from published
    energies per access and bit. Without the model's weights, leakage, wires and clock tree.
    """
    from kvtq_hw.estimates.candidates import integers, ternary
    from kvtq_hw.estimates.system_energy import System, measurements, nearest
    from kvtq_hw.report.sections.recorded import recorded

    check_context(tokens, config)
    _check_tiers(codes, tokens)
    files = recorded(results, "power")
    system = System(config.name, layers, kv_heads, config)
    engines = nearest(measurements(file.data for file in files), system)
    int8, _, conditioned = integers(config)
    candidates = [*(ternary(config, code) for code in codes), conditioned, int8]
    rows = _rows(system, tokens, candidates, engines, memory_pj)
    if not any(row["name"] == int8.name for row in rows):
        raise UserError(
            f"--results: {str(results)!r} has no attention of INT8; allowed is a folder with files "
            "of kvtq-hw power --json, such as docs/results of a checkout"
        )
    click.echo(
        f"{config.name}: {layers} layers, {kv_heads} KV heads of {config.head_dim} elements, "
        f"{tokens:,} tokens, KV memory of {memory_pj:g} pJ per bit"
    )
    print_table(_table(rows))
    click.echo("Bits and MB are derived, energies per token in uJ are projected.")
    write_json(
        json_file,
        {
            "command": command_line(
                *("--preset", "--layers", "--kv-heads", "--code", "--context", "--memory-pj"),
                "--results",
            ),
            "config": config.model_dump(),
            "layers": layers,
            "kv_heads": kv_heads,
            "tokens": tokens,
            "memory_pj": memory_pj,
            "recorded": [file.command for file in files],
            "rows": rows,
        },
    )


def _check_tiers(codes: Sequence[CacheCode | CodeTable], tokens: int) -> None:
    """Refuse a context that sinks and window fill: an append would move nothing to the body."""
    for code in codes:
        each = code.codes if isinstance(code, CodeTable) else (code,)
        longest = max(entry.tiers.sinks + entry.tiers.window for entry in each)
        if tokens <= longest:
            raise UserError(
                f"--context: {tokens} is not allowed; must be more than the {longest} tokens of "
                f"sinks and window of {str(code)!r}"
            )


def _rows(
    system: System,
    tokens: int,
    candidates: Sequence[Candidate],
    engines: Sequence[Measured],
    memory_pj: float,
) -> list[dict[str, Any]]:
    """Return a row for each format on each recorded engine that reads it."""
    from kvtq_hw.estimates.system_energy import system_energy

    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        for engine in engines:
            if engine.config.cache_format != candidate.config.cache_format:
                continue
            energy = system_energy(system, tokens, candidate, engine)
            key_planes, value_planes = engine.planes
            rows.append(
                {
                    "name": candidate.name,
                    "code": candidate.code,
                    "lanes": engine.config.lanes,
                    "key_planes": key_planes,
                    "value_planes": value_planes,
                    "bits_per_element": energy.bits_per_element,
                    "moved_bytes": round(energy.moved_bits / 8),
                    "engine_uj": energy.engine,
                    "on_chip_uj": energy.on_chip,
                    "kv_memory_uj": energy.kv_memory(memory_pj),
                    "total_uj": energy.total(memory_pj),
                }
            )
    int8 = {row["lanes"]: row["total_uj"] for row in rows if row["name"] == "INT8"}
    for row in rows:
        reference = int8.get(row["lanes"])
        row["int8_ratio"] = row["total_uj"] / reference if reference else None
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("format", no_wrap=True)
    for name in ("planes", "bits", "MB", "engine", "on chip", "KV memory", "total", "INT8 = 1"):
        table.add_column(name, justify="right")
    for row in rows:
        energies = (row[name] for name in ("engine_uj", "on_chip_uj", "kv_memory_uj", "total_uj"))
        table.add_row(
            row["name"],
            f"{row['key_planes']}/{row['value_planes']}",
            f"{row['bits_per_element']:.2f}",
            f"{row['moved_bytes'] / 1e6:,.2f}",
            *(f"{energy:,.0f}" for energy in energies),
            "-" if row["int8_ratio"] is None else f"{row['int8_ratio']:.2f}",
        )
    return table
