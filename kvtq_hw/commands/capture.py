"""Save attentions of a real decode, each KV head's in a file, for `kvtq-hw replay`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from kvtq_hw.commands.frame.options import (
    MAX_TOKENS,
    OutputFolder,
    code_option,
    command_line,
    fitted_option,
    json_option,
    model_option,
    write_json,
)
from kvtq_hw.commands.frame.session import load_session
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.steps import show_steps

__all__ = ["command"]

DEFAULT_PROMPT = "Photosynthesis is the process by which green plants use the energy of sunlight to"


@click.command()
@fitted_option
@model_option
@code_option("Cache code, or a code table: digits of each layer.")
@click.option("--prompt", default=DEFAULT_PROMPT, show_default=True, help="Text to continue.")
@click.option("--layer", "layers", type=int, multiple=True, default=(0,), show_default=True)
@click.option(
    "--head", "heads", type=int, multiple=True, default=(0,), show_default=True, help="KV head."
)
@click.option(
    "--step",
    "steps",
    type=click.IntRange(0, MAX_TOKENS),
    multiple=True,
    default=(0,),
    show_default=True,
    help="Decode step; 0 is the first after the prompt.",
)
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    default=Path("build/capture"),
    show_default=True,
    help="Folder for the files.",
)
@json_option
def command(
    preset: EngineConfig | None,
    model_name: str,
    code: CacheCode | CodeTable,
    prompt: str,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    steps: tuple[int, ...],
    output: Path,
    json_file: Path | None,
) -> None:
    """Decode with the golden model and save chosen attentions: --layer, --head and --step each
    may be given several times."""
    from golden.cache.saturation import saturation
    from golden.llm.capture import CaptureBackend
    from golden.llm.decoding import needed_context
    from golden.llm.models import load_model

    model, new_tokens = load_model(model_name), max(steps) + 2
    for name, chosen, count in (
        ("--layer", layers, model.layers),
        ("--head", heads, model.kv_heads),
    ):
        for number in chosen:
            if not 0 <= number < count:
                raise UserError(f"{name}: {number} is not allowed; must be 0..{count - 1}")
    context = needed_context(model, prompt, new_tokens)
    loaded = load_session(model, code, context, preset=preset, step=show_steps(Console()))
    backend = CaptureBackend(layers, heads, steps)
    session = replace(loaded, backend=backend)
    cache = session.new_cache()
    session.decode(prompt, new_tokens, cache)
    found = saturation(cache)
    if found.elements:
        click.echo(str(found))
    expected = len(layers) * len(heads) * len(steps)
    files = []
    for job in backend.captured:
        file = output / f"layer{job.layer}-head{job.head}-step{job.step}.safetensors"
        job.save(file)
        click.echo(f"{file}: {len(job.key_depths)} tokens")
        place = {"layer": job.layer, "head": job.head, "step": job.step}
        files.append({"file": str(file), **place, "tokens": len(job.key_depths)})
    write_json(
        json_file,
        {
            "command": command_line(
                *("--preset", "--model", "--code", "--prompt", "--layer", "--head", "--step"), "-o"
            ),
            "model": model.name,
            "config": session.config.model_dump(),
            "files": files,
        },
    )
    if len(backend.captured) != expected:
        raise UserError(
            f"--step: the text ended early; {len(backend.captured)} of {expected} attentions saved"
        )
