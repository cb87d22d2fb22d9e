"""Print where everything lies in the KV memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    code_option,
    command_line,
    json_option,
    model_shape_options,
    preset_option,
    write_json,
)
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import shown
from kvtq_hw.contract.layout import SIDES, MemoryLayout

__all__ = ["command"]


@click.command()
@preset_option
@code_option("Cache code, or a code table: digits, tiers and sliding window of each layer.")
@model_shape_options
@click.option(
    "--context",
    type=click.IntRange(1, MAX_TOKENS),
    help="Tokens to make room for.  [default: max_context]",
)
@click.option(
    "--base", default="0", show_default=True, metavar="ADDRESS", help="Address of the first byte."
)
@json_option
def command(
    config: EngineConfig,
    code: CacheCode | CodeTable,
    layers: int,
    kv_heads: int,
    context: int | None,
    base: str,
    json_file: Path | None,
) -> None:
    """Print where keys and values lie in the KV memory: the regions of each layer and KV head."""
    try:
        address = int(base, 0)
    except ValueError:
        raise click.BadParameter(
            f"{shown(base)} is not allowed; must be an address such as 0x1000", param_hint="--base"
        ) from None
    codes = code.of_layers(layers)
    tokens = config.max_context if context is None else context
    layout = MemoryLayout(config, codes, kv_heads, tokens, address)
    rows = [
        (layer, head, side, tier, region)
        for layer, heads in enumerate(layout.heads)
        for head, vectors in enumerate(heads)
        for side in SIDES
        for tier, region in vectors.of(side).regions.items()
        if region.slots
    ]
    digits = max(5, len(f"{layout.end:x}"))
    click.echo(f"layer  head  side   tier    {'address':>{digits + 2}}  digits  bytes   records")
    for layer, head, side, tier, region in rows:
        click.echo(
            f"{layer:5}  {head:4}  {side:5}  {tier:6}  {region.base:#0{digits + 2}x}  "
            f"{region.digits:6}  {region.record_bytes:5}  {region.slots:8}"
        )
    windows = Counter(layer.tiers.sliding for layer in codes if layer.tiers.sliding is not None)
    for window, count in windows.items():
        click.echo(
            f"{count} of {layers} layers have a sliding window of {window} tokens: their body is a "
            "ring"
        )
    click.echo(
        f"{layout.bytes} bytes up to {layout.end:#x}, {layout.tokens} tokens, "
        f"words of {config.memory_bits} bits"
    )
    write_json(
        json_file,
        {
            "command": command_line(
                "--preset", "--code", "--layers", "--kv-heads", "--context", "--base"
            ),
            "config": config.model_dump(),
            "layers": layers,
            "kv_heads": kv_heads,
            "tokens": layout.tokens,
            "sliding": [layer.tiers.sliding for layer in codes],
            "bytes": layout.bytes,
            "end": layout.end,
            "regions": [
                {
                    "layer": layer,
                    "head": head,
                    "side": side,
                    "tier": tier,
                    "address": region.base,
                    "digits": region.digits,
                    "record_bytes": region.record_bytes,
                    "records": region.slots,
                }
                for layer, head, side, tier, region in rows
            ],
        },
    )
