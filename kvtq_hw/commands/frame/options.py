"""Options shared by several commands, option types, and the writer of `--json` files."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.shell_completion import CompletionItem

from kvtq_hw.contract.codes import DEFAULT_CODE, MAX_LAYERS, CacheCode, CodeTable, read_code
from kvtq_hw.contract.config import EngineConfig, load_config, preset_names
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import check_destination, check_folder, json_text, write_text
from kvtq_hw.contract.model_wheels import WHEEL_MODELS
from kvtq_hw.estimates.traffic import MEMORIES

if TYPE_CHECKING:
    from kvtq_hw.estimates.liberty import Liberty

__all__ = [
    "MAX_TOKENS",
    "CodeType",
    "FiniteRange",
    "OutputFile",
    "OutputFolder",
    "PresetType",
    "SpelledType",
    "calibration_option",
    "check_context",
    "code_option",
    "command_line",
    "context_option",
    "device_options",
    "fitted_option",
    "gating_line",
    "gating_option",
    "json_option",
    "liberty_option",
    "memory_option",
    "model_option",
    "model_shape_options",
    "preset_option",
    "quality_option",
    "results_option",
    "scheduler_option",
    "write_json",
]


#: Most tokens that any option accepts: the longest context of a configuration.
MAX_TOKENS = 1 << 20

#: Most KV heads per layer: as many as the largest models without query groups have.
MAX_KV_HEADS = 256

#: Key in click's context for the spellings of option values.
_SPELLINGS = "kvtq_hw.spellings"


class SpelledType(click.ParamType):
    """A type of option values read from text; `command_line` repeats the original spelling."""

    def read(self, text: str) -> Hashable:
        """Return the value of a text; raises `UserError` for an invalid text."""
        raise NotImplementedError

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Hashable:
        if not isinstance(value, str):
            return value
        read = self.read(value)
        if ctx is not None:
            ctx.meta.setdefault(_SPELLINGS, {})[read] = value
        return read


class PresetType(SpelledType):
    """The name of a preset or the path of a TOML file, converted to an `EngineConfig`."""

    name = "preset"

    def read(self, text: str) -> EngineConfig:
        return load_config(text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer presets that begin with the text, else files."""
        names = [name for name in preset_names() if name.startswith(incomplete)]
        if names:
            return [CompletionItem(name) for name in names]
        return [CompletionItem(incomplete, type="file")]


class CodeType(SpelledType):
    """A spelled cache code, or the path of a code table, converted to the code or table.

    Parameters
    ----------
    tables : whether a code table is accepted
    """

    name = "code"

    def __init__(self, tables: bool = True) -> None:
        self._tables = tables

    def read(self, text: str) -> CacheCode | CodeTable:
        code = read_code(text)
        if isinstance(code, CodeTable) and not self._tables:
            raise UserError(f"--code: {text!r} is a table; allowed are codes such as balanced:3/2")
        return code


class FiniteRange(click.FloatRange):
    """A finite number in a range; NaN, which no comparison rejects, and infinity are refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not allowed; must be a finite number", param, ctx)
        return number


class OutputFile(click.Path):
    """The path of a file to write; a path that cannot be written is refused before the work.

    Parameters
    ----------
    suffixes : allowed endings of the file's name; without any, every name is allowed
    """

    def __init__(self, *suffixes: str) -> None:
        super().__init__(path_type=Path)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        file, option = Path(value), _option_of(param)
        if self._suffixes and not file.name.endswith(self._suffixes):
            allowed = " or ".join(self._suffixes)
            raise UserError(f"{option}: {str(file)!r} is not allowed; must end in {allowed}")
        check_destination(file, option)
        return file


class OutputFolder(click.Path):
    """The path of a folder for output files; a missing folder is made."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        check_folder(Path(value), _option_of(param))
        return Path(value)


def _option_of(param: click.Parameter | None) -> str:
    """Return the name of an option for the beginning of a message."""
    return param.opts[-1] if param is not None else "output"


def command_line(*names: str) -> str:
    """Spell the running command with the arguments that decide its numbers, to be run again.

    Parameters
    ----------
    names : options such as ``--preset``, and names of arguments, in the order of the line; an
        option without a given or default value is left out
    """
    context = click.get_current_context()
    words = ["kvtq-hw", str(context.info_name)]
    spellings = context.meta.get(_SPELLINGS, {})
    for name in names:
        (parameter,) = (p for p in context.command.params if name in (p.name, *p.opts))
        value = context.params[parameter.name or name]
        option = [name] if name.startswith("-") else []
        if isinstance(value, bool):
            words += option if value else []
        elif value is not None:
            for one in value if parameter.multiple else [value]:
                words += [*option, spellings.get(one, str(one))]
    return " ".join(words)


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

#: `--preset NAME|FILE.toml` for commands with a model, passed to the command as `preset`: None is a
#: configuration fitted to the model, `golden.llm.models.LanguageModel.fitted`.
fitted_option = click.option(
    "--preset",
    type=PresetType(),
    metavar="NAME|FILE",
    help=f"Configuration: {', '.join(preset_names())}, or the path of a .toml file.  "
    "[default: that of smollm2, fitted to the model]",
)


def code_option(
    help_text: str,
    default: CacheCode | Sequence[CacheCode | str] = DEFAULT_CODE,
    *,
    accepts: Literal["code", "table", "format"] = "table",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option `--code CODE`, passed as `code`, or as `codes` if it may be repeated.

    Parameters
    ----------
    default : a single code; a sequence of codes makes an option that may be repeated
    accepts : "code" for one code for all layers, "table" for a code or a code table (both are
        converted), "format" for any format of `golden.study.catalog`, kept as text
    """
    several = not isinstance(default, CacheCode)
    texts = [str(code) for code in ([default] if isinstance(default, CacheCode) else default)]
    return click.option(
        "--code",
        "codes" if several else "code",
        type=str if accepts == "format" else CodeType(accepts == "table"),
        multiple=several,
        default=texts if several else texts[0],
        show_default=True,
        metavar={"code": "KIND:K/V", "table": "KIND:K/V|TABLE.toml", "format": "CODE"}[accepts],
        help=help_text,
    )


#: `--model NAME|PATH`, passed to the command as `model_name`.
model_option = click.option(
    "--model",
    "model_name",
    default="smollm2",
    show_default=True,
    metavar="NAME|PATH",
    help=f"{', '.join(WHEEL_MODELS)} (see `kvtq-hw models`), a .gguf file, a model folder, or a "
    "name on the Hugging Face hub.",
)

#: `--calibration FILE`, passed to the command as `calibration_file`.
calibration_option = click.option(
    "--calibration",
    "calibration_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File that `kvtq-hw calibrate` wrote for this model.  [default: calibrate once]",
)

_layers_option = click.option(
    "--layers",
    type=click.IntRange(1, MAX_LAYERS),
    default=1,
    show_default=True,
    help="Layers of the model.",
)
_kv_heads_option = click.option(
    "--kv-heads",
    type=click.IntRange(1, MAX_KV_HEADS),
    default=1,
    show_default=True,
    help="KV heads per layer.",
)


def model_shape_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make the options `--layers` and `--kv-heads`, what a configuration does not say."""
    return _layers_option(_kv_heads_option(command))


_device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda|cuda:N",
    help="Where the model computes.",
)
_dtype_option = click.option(
    "--dtype",
    default="float32",
    show_default=True,
    metavar="float32|bfloat16|float16",
    help="Numbers that the model computes in.",
)


def device_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make the options `--device` and `--dtype`, for `golden.llm.models.load_model`."""
    return _device_option(_dtype_option(command))


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

#: `--no-clock-gating`, passed to the command as `ungated`.
gating_option = click.option(
    "--no-clock-gating",
    "ungated",
    is_flag=True,
    help="Clock every flip-flop in every cycle: no clock gates.",
)


def gating_line(library: Liberty) -> str:
    """Return a line that says by which cells clocks are gated, or why they are not."""
    if library.clock_gate:
        return f"Clock gates: {library.clock_gate.cell}."
    why = f"none in {library.name}" if library.gating else "none (--no-clock-gating)"
    return f"Clock gates: {why}. Every flip-flop is clocked in every cycle."


#: `--quality FILE`, may be repeated, passed to the command as `quality_files`.
quality_option = click.option(
    "--quality",
    "quality_files",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Results of `kvtq-hw eval`, for the quality of each code.",
)


#: `--memory-pj PJ`, passed to the command as `memory_pj`.
memory_option = click.option(
    "--memory-pj",
    type=FiniteRange(min=0),
    default=MEMORIES["LPDDR4"].picojoules_per_bit,
    show_default=True,
    help="Picojoules per bit of the KV memory, for the energy of a token; the default is LPDDR4.",
)


def results_option(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option `--results FOLDER` with files of ``kvtq-hw COMMAND --json``."""
    return click.option(
        "--results",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("docs/results"),
        show_default=True,
        help=f"Folder with files of `kvtq-hw {command} --json`.",
    )


def scheduler_option(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make the option `--scheduler ADDRESS`; `default` says who works without it."""
    return click.option(
        "--scheduler",
        metavar="ADDRESS",
        help=f"Dask scheduler, for example tcp://host:8786.  [default: {default}]",
    )


#: `--context TOKENS`, passed to the command as `tokens`; `check_context` checks the number.
context_option = click.option(
    "--context", "tokens", type=click.IntRange(1, MAX_TOKENS), default=1024, show_default=True
)


def check_context(tokens: int, *configs: EngineConfig) -> None:
    """Raise `UserError` if an engine of `configs` holds fewer than `tokens` tokens."""
    longest = min(config.max_context for config in configs)
    if tokens > longest:
        raise UserError(f"--context: {tokens} is more than max_context {longest}")


def write_json(file: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report to the file of `--json`, complete or not at all; do nothing without a file.

    Raises
    ------
    UserError
        When the file cannot be written.
    """
    if file is not None:
        write_text(file, json_text(report), "--json")
