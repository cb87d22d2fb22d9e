"""Write the report: report.json, and of it one HTML page and Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtq_hw.commands.frame.options import (
    OutputFolder,
    code_option,
    memory_option,
    model_option,
    preset_option,
    results_option,
)
from kvtq_hw.contract.codes import STANDARD_CODES, CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import json_text, write_text
from kvtq_hw.contract.folders import cache_folder

__all__ = ["command"]


@click.command()
@preset_option
@model_option
@code_option("Cache code; the first one is shown in most detail.", STANDARD_CODES, accepts="code")
@results_option("eval")
@memory_option
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    default=Path("build/report"),
    show_default=True,
    help="Folder for report.json, report.html and report.md.",
)
def command(
    config: EngineConfig,
    model_name: str,
    codes: tuple[CacheCode, ...],
    results: Path,
    memory_pj: float,
    output: Path,
) -> None:
    """Measure what has not been measured yet, and write the report.

    Sections and pictures are kept in the user's cache folder under everything that decides them: a
    second run takes seconds.
    """
    from rich.console import Console

    from kvtq_hw.host.results import ResultStore
    from kvtq_hw.report.collect import collect
    from kvtq_hw.report.content import Inputs
    from kvtq_hw.report.page import html, markdown

    for code in codes:
        if code.most_digits > config.max_planes:
            raise UserError(
                f"code: {str(code)!r} has more digits than configuration {config.name!r} allows, "
                f"max_planes = {config.max_planes}"
            )
    console = Console()
    with console.status("") as status:
        report = collect(
            Inputs(config, codes, model_name, results, memory_pj),
            lambda name: status.update(f"Section {name}"),
        )
    text = json_text(report, indent=1)
    report = json.loads(text)  # pages are made from the file's content alone
    pictures = ResultStore(cache_folder() / "report" / "pictures.sqlite")
    pages = {
        "report.json": text,
        "report.html": html(report, pictures),
        "report.md": markdown(report),
    }
    for name, page in pages.items():
        write_text(output / name, page, "--output")
    click.echo(f"{output / 'report.html'}: {len(report['sections'])} sections")
