"""Write the report: report.json, and of it one HTML page and Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError
from kvtq_hw.flows.compare import DEFAULT_CODES
from kvtq_hw.options import DEFAULT_CODE, cache_code, codes_option, model_option, preset_option

__all__ = ["command"]

CODES = (*DEFAULT_CODES, str(DEFAULT_CODE.with_digits(1, 1)))


@click.command()
@preset_option
@model_option
@codes_option("Cache code; the first one is shown in most detail.", CODES)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/results"),
    show_default=True,
    help="Folder with files of `kvtq-hw eval --json`.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/report"),
    show_default=True,
    help="Folder for report.json, report.html and report.md.",
)
def command(
    config: EngineConfig,
    model_name: str,
    codes: tuple[str, ...],
    results: Path,
    output: Path,
) -> None:
    """Measure what has not been measured yet, and write the report.

    Sections are kept in the user's cache folder under everything that decides them: a second run
    takes seconds.
    """
    from rich.console import Console

    from kvtq_hw.report.collect import collect
    from kvtq_hw.report.content import Inputs
    from kvtq_hw.report.page import html, markdown

    parsed = tuple(map(cache_code, codes))
    for code in parsed:
        if code.most_digits > config.max_planes:
            raise UserError(
                f"code: {str(code)!r} has more digits than configuration {config.name!r} allows, "
                f"max_planes = {config.max_planes}"
            )
    console = Console()
    with console.status("") as status:
        report = collect(
            Inputs(config, parsed, model_name, results),
            lambda name: status.update(f"Section {name}"),
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        # pages are made of what the file holds, nothing else
        report = json.loads((output / "report.json").read_text("utf-8"))
        (output / "report.html").write_text(html(report), "utf-8")
        (output / "report.md").write_text(markdown(report), "utf-8")
    except OSError as error:
        raise UserError(f"--output: {str(output)!r}: {error.strerror}") from None
    click.echo(f"{output / 'report.html'}: {len(report['sections'])} sections")
