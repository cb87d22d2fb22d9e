"""Options that several commands share, types of numbers, and how `--json` is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from kvtq_hw.contract.codes import CacheCode, CodeTable, read_code
from kvtq_hw.contract.config import EngineConfig, load_config, preset_names
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import check_destination, check_folder, json_text, write_text

__all__ = [
    "DEFAULT_CODE",
    "MAX_TOKENS",
    "CodeType",
    "FiniteRange",
    "OutputFile",
    "OutputFolder",
    "PresetType",
    "cache_code",
    "check_context",
    "code_option",
    "codes_option",
    "context_option",
    "fitted_option",
    "json_option",
    "liberty_option",
    "model_option",
    "preset_option",
    "preset_text",
    "quality_option",
    "write_json",
]


#: What commands take where no code is named, and what we recommend (docs/quality.md).
DEFAULT_CODE = CacheCode.parse("balanced:3/2,sinks=4,window=32,feedback")

#: Most tokens that any option takes: the longest context of a configuration.
MAX_TOKENS = 1 << 20

_PRESET_TEXT = "kvtq_hw.preset_text"


class PresetType(click.ParamType):
    """The name of a preset or the path of a TOML file, converted to an `EngineConfig`.

    Raises `kvtq_hw.contract.config.ConfigError`, a `UserError`, for anything else.
    """

    name = "preset"

    def convert(
        self,
        value: str | EngineConfig,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> EngineConfig:
        if isinstance(value, EngineConfig):
            return value
        if ctx is not None:
            ctx.meta[_PRESET_TEXT] = value
        return load_config(value)


class CodeType(click.ParamType):
    """A spelled cache code or the path of a code table, read.

    Parameters
    ----------
    tables : a table with digits for each layer will do
    """

    name = "code"

    def __init__(self, tables: bool = True) -> None:
        self._tables = tables

    def convert(
        self,
        value: str | CacheCode | CodeTable,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> CacheCode | CodeTable:
        if not isinstance(value, str):
            return value
        return read_code(value) if self._tables else cache_code(value)


class FiniteRange(click.FloatRange):
    """A number in a range; NaN, which no comparison refuses, and infinity are no numbers here."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not allowed; must be a finite number", param, ctx)
        return number


class OutputFile(click.Path):
    """The path of a file to write: refused at once where it could not be written at the end."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        check_destination(Path(value), _option_of(param))
        return Path(value)


class OutputFolder(click.Path):
    """The path of a folder to write files into, which is made where it is missing."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        check_folder(Path(value), _option_of(param))
        return Path(value)


def _option_of(param: click.Parameter | None) -> str:
    """Name of an option as a message begins with it."""
    return param.opts[-1] if param is not None else "output"


def preset_text() -> str:
    """The preset or file that the running command was given, as it was spelled."""
    return str(click.get_current_context().meta[_PRESET_TEXT])


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

#: `--preset NAME|FILE.toml` where the model decides, passed to the command as `preset`: None is a
#: configuration made for the model, `golden.llm.models.LanguageModel.fitted`.
fitted_option = click.option(
    "--preset",
    type=PresetType(),
    metavar="NAME|FILE",
    help=f"Configuration: {', '.join(preset_names())}, or the path of a .toml file.  "
    "[default: that of smollm2, fitted to the model]",
)


def code_option(
    help_text: str, *, tables: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--code CODE`, passed to the command as `code`: one code, or a table of them by layer."""
    return click.option(
        "--code",
        type=CodeType(tables),
        default=str(DEFAULT_CODE),
        show_default=True,
        metavar="KIND:K/V|TABLE.toml" if tables else "KIND:K/V",
        help=help_text,
    )


def codes_option(
    help_text: str, default: Sequence[str] = (str(DEFAULT_CODE),)
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--code CODE`, as often as wanted, passed to the command as `codes`: texts, not read yet."""
    return click.option(
        "--code",
        "codes",
        multiple=True,
        default=tuple(default),
        show_default=True,
        metavar="CODE",
        help=help_text,
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

#: `--json FILE`, passed to the command as `json_file`; `write_json` writes it.
json_option = click.option(
    "--json",
    "json_file",
    type=OutputFile(),
    metavar="FILE",
    help="Write the numbers.",
)

#: `--liberty FILE`, passed to the command as `library_file`.
liberty_option = click.option(
    "--liberty",
    "library_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Library of cells (.lib or .lib.gz).  [default: the shipped areas of sky130_fd_sc_hd]",
)

#: `--quality FILE`, as often as wanted, passed to the command as `quality_files`.
quality_option = click.option(
    "--quality",
    "quality_files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Results of `kvtq-hw eval`, for the quality of each code.",
)

#: `--context TOKENS`, passed to the command as `tokens`; `check_context` knows what fits.
context_option = click.option(
    "--context", "tokens", type=click.IntRange(1, MAX_TOKENS), default=1024, show_default=True
)


def cache_code(text: str) -> CacheCode:
    """The code that `--code` spells, where a table of codes by layer is of no use.

    Raises
    ------
    UserError
        For a table, or what is no code.
    """
    code = read_code(text)
    if not isinstance(code, CacheCode):
        raise UserError(f"--code: {text!r} is a table; allowed are codes such as balanced:3/2")
    return code


def check_context(tokens: int, *configs: EngineConfig) -> None:
    """Raise `UserError` when an engine of `configs` holds fewer tokens than `--context` says."""
    longest = min(config.max_context for config in configs)
    if tokens > longest:
        raise UserError(f"--context: {tokens} is more than max_context {longest}")


def write_json(file: Path | None, report: Mapping[str, Any]) -> None:
    """Write what `--json` asks for, whole or not at all; without a file nothing.

    Raises
    ------
    UserError
        When it cannot be written.
    """
    if file is not None:
        write_text(file, json_text(report), "--json")
