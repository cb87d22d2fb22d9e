"""Options that several commands share."""

from __future__ import annotations

import click

from kvtq_hw.config import EngineConfig, load_config, preset_names

__all__ = ["PresetType", "model_option", "preset_option"]


class PresetType(click.ParamType):
    """The name of a preset or the path of a TOML file, converted to an `EngineConfig`.

    Raises `kvtq_hw.config.ConfigError`, a `UserError`, for anything else.
    """

    name = "preset"

    def convert(
        self,
        value: str | EngineConfig,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> EngineConfig:
        return value if isinstance(value, EngineConfig) else load_config(value)


#: `--preset NAME|FILE.toml`, passed to the command as `config`.
preset_option = click.option(
    "--preset",
    "config",
    type=PresetType(),
    default="smollm2",
    show_default=True,
    metavar="NAME|FILE",
    help=f"Configuration: {', '.join(preset_names())}, or the path of a .toml file.",
)

#: `--model NAME|PATH`, passed to the command as `model_name`.
model_option = click.option(
    "--model",
    "model_name",
    default="smollm2",
    show_default=True,
    metavar="NAME|PATH",
    help="smollm2, a .gguf file, a model folder, or a name on the Hugging Face hub.",
)
