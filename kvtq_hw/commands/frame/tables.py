"""Tables of commands on a terminal: no number is ever cut off."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["print_table"]


def print_table(table: Table, file: TextIO | None = None, width: int | None = None) -> None:
    """Print a table at the width of its contents, also where the terminal is narrower.

    rich shortens cells that do not fit, and a shortened number is a wrong one.

    Parameters
    ----------
    file : the standard output when None
    width : columns of the terminal; found out when None
    """
    console = Console(file=file, width=width)
    wide = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
