"""Tables of commands: every number whole, in a terminal of any width."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from kvtq_hw.commands.frame.tables import print_table

NUMBERS = ["1,870,538", "x1.0440", "12,879", "276,772"]


@pytest.mark.parametrize("width", [20, 45, 80, 200])
def test_numbers_are_whole(width: int) -> None:
    table = Table(box=None)
    table.add_column("engine with a long name", no_wrap=True)
    for title in ("um2 a lane", "perplexity", "cycles", "bytes"):
        table.add_column(title, justify="right")
    table.add_row("ternary smollm2-anchors-3.6", *NUMBERS)
    text = io.StringIO()
    print_table(table, text, width)
    heading, row = text.getvalue().splitlines()
    assert row.split() == ["ternary", "smollm2-anchors-3.6", *NUMBERS]
    assert heading.split()[-3:] == ["perplexity", "cycles", "bytes"]
