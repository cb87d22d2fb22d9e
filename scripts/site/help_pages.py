"""MkDocs hook: a page of what `--help` prints, for every command, instead of one marker line."""

from __future__ import annotations

from typing import Any

import click

from kvtq_hw.commands.frame.cli import cli

_MARKER = "<!-- help of every command -->"
_COLUMNS = 100


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker by the help of the group and of each command."""
    return markdown.replace(_MARKER, help_texts()) if _MARKER in markdown else markdown


def help_texts() -> str:
    """Return Markdown with a section per command: its `--help`, as the terminal shows it."""
    group = click.Context(cli, info_name="kvtq-hw", terminal_width=_COLUMNS)
    sections = [f"```\n{cli.get_help(group)}\n```"]
    for name in cli.list_commands(group):
        command = cli.get_command(group, name)
        if command is None:
            raise LookupError(f"command {name!r} is listed and not there")
        context = click.Context(command, group, info_name=name, terminal_width=_COLUMNS)
        sections.append(f"## {name}\n\n```\n{command.get_help(context)}\n```")
    return "\n\n".join(sections)
