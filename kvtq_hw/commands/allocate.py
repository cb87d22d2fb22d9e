"""Choose digits per layer, for keys and for values, under a budget in true bits or in cycles.

Measures the loss of each layer's keys and values under few digits, on text that the model itself
writes, and spends the budget where it reduces the loss most. In a layer with a sliding window a
digit costs less, because the layer stores fewer tokens. The result is a code table for `--code`.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    FiniteRange,
    OutputFile,
    code_option,
    command_line,
    device_options,
    fitted_option,
    json_option,
    model_option,
    write_json,
)
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import write_text
from kvtq_hw.host.steps import show_steps

__all__ = ["command"]


@click.command()
@fitted_option
@model_option
@device_options
@code_option("Kind, tiers and options; the digits are chosen.", accepts="code")
@click.option(
    "--bits",
    type=FiniteRange(0, 1000),
    help="Budget in true bits per element, everything included.",
)
@click.option(
    "--cycles",
    type=click.IntRange(1, 1 << 60),
    help="Budget in plane slices per decode step, all layers.",
)
@click.option(
    "--context",
    type=click.IntRange(2, MAX_TOKENS),
    default=1024,
    show_default=True,
    help="Context length at which the budget holds.",
)
@click.option(
    "--tokens",
    type=click.IntRange(64, MAX_TOKENS),
    default=2048,
    show_default=True,
    help="Tokens that sensitivity is measured on.",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(".toml"),
    required=True,
    metavar="FILE.toml",
    help="Where the code table is written.",
)
@json_option
def command(
    preset: EngineConfig | None,
    model_name: str,
    device: str,
    dtype: str,
    code: CacheCode,
    bits: float | None,
    cycles: int | None,
    context: int,
    tokens: int,
    output: Path,
    json_file: Path | None,
) -> None:
    """Choose digits per layer under a budget."""
    from golden.llm.calibration import load_or_calibrate
    from golden.llm.models import load_model
    from golden.study.allocator import (
        allocate,
        bits_budget,
        code_table,
        cycles_budget,
        measure_sensitivity,
    )

    if (bits is None) == (cycles is None):
        raise UserError("budget: give exactly one of --bits and --cycles")
    model = load_model(model_name, device=device, dtype=dtype)
    config = model.fitted(preset, [], context)
    if bits is not None:
        budget = bits_budget(config, code, model.windows, bits, context)
    else:
        budget = cycles_budget(config, code, model.windows, model.kv_heads, cycles or 0, context)
    console = Console()
    with show_steps(console)("Calibrating") as on_progress:
        calibration = load_or_calibrate(model, None, on_progress)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("measuring sensitivity", total=tokens)
        sensitivity = measure_sensitivity(
            model, calibration, config, code, tokens, lambda done: progress.advance(task, done)
        )
    losses = sensitivity.losses()[:, : config.max_planes]
    chosen = allocate(losses, budget)
    table = code_table(output.name, code, chosen, model.windows)
    write_text(output, table.to_toml(), "--output")
    loss = sum(losses[index, n - 1].item() for index, n in enumerate(chosen))
    console.print(
        f"{sum(chosen)} digits for {len(chosen)} tensors, {budget.spent(chosen) / budget.most:.1%} "
        f"of the budget spent, expected divergence {loss:.4f} nats; written to {output}"
    )
    deciding = (
        "--preset",
        "--model",
        "--code",
        "--bits",
        "--cycles",
        "--context",
        "--tokens",
        "-o",
    )
    write_json(
        json_file,
        {
            "command": command_line(*deciding, "-o"),
            "model": model.name,
            "model_fingerprint": model.fingerprint,
            "config": config.model_dump(),
            "context": context,
            "tokens": tokens,
            "digits": list(chosen),
            "budget_spent": budget.spent(chosen) / budget.most,
            "expected_kld": loss,
            "file": str(output),
        },
    )
