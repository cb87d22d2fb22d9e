"""Measure what is static in the cache of a model, on a text, and write it to a calibration file.

The file holds equalizers of channels, key centres, number ranges and feedback matrices. Other
commands calibrate automatically, on a text that the model itself writes, and keep the result in the
user's cache folder. `decode` and `eval` take a file of this command as `--calibration`.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    OutputFile,
    command_line,
    device_options,
    json_option,
    model_option,
    write_json,
)
from kvtq_hw.contract.codes import DEFAULT_CODE
from kvtq_hw.contract.files import read_text
from kvtq_hw.host.steps import show_steps

__all__ = ["command"]


@click.command()
@model_option
@device_options
@click.option(
    "--text",
    "text_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text to calibrate on.  [default: the model writes one]",
)
@click.option(
    "--tokens",
    type=click.IntRange(16, MAX_TOKENS),
    default=4096,
    show_default=True,
    help="Tokens of the text that are used.",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    required=True,
    metavar="FILE",
    help="Where the calibration is written, in safetensors format.",
)
@json_option
def command(
    model_name: str,
    device: str,
    dtype: str,
    text_file: Path | None,
    tokens: int,
    output: Path,
    json_file: Path | None,
) -> None:
    """Measure equalizers, key centres, number ranges and feedback matrices of a model."""
    from golden.llm.calibration import calibrate, save_calibration
    from golden.llm.models import load_model
    from golden.study.coding_warnings import warn_of_losses

    text = None if text_file is None else read_text(text_file, "text")
    console = Console()
    step = show_steps(console)
    with step(f"Loading model {model_name}"):
        language_model = load_model(model_name, device=device, dtype=dtype)
        config = language_model.fitted(None, [DEFAULT_CODE], 1)
    with step(f"Calibrating model {model_name}") as on_progress:
        calibration = calibrate(language_model, text, tokens, on_progress)
    save_calibration(calibration, output)
    layers, kv_heads, dim = calibration.key_centres.shape
    console.print(
        f"{layers} layers, {kv_heads} KV heads of {dim}, measured on {tokens} tokens; "
        f"written to {output}"
    )
    warn_of_losses(
        language_model,
        calibration.conditioning(feedback=DEFAULT_CODE.feedback),
        config,
        DEFAULT_CODE,
    )
    write_json(
        json_file,
        {
            "command": command_line("--model", "--text", "--tokens", "-o"),
            "model": language_model.name,
            "model_fingerprint": calibration.model_fingerprint,
            "text_digest": calibration.text_digest,
            "tokens": calibration.tokens,
            "layers": layers,
            "kv_heads": kv_heads,
            "head_dim": dim,
            "file": str(output),
        },
    )
