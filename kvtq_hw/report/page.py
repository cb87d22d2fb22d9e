"""Pages made from `report.json`: a self-contained HTML file, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from kvtq_hw.report.plots import svg

if TYPE_CHECKING:
    import jinja2

    from kvtq_hw.host.results import ResultStore

__all__ = ["html", "markdown"]


#: A cell with more characters than this is broken into lines.
_LONG = 45


def html(report: Mapping[str, Any], store: ResultStore | None = None) -> str:
    """Return the report as an HTML page that contains its style, pictures and scripts.

    Parameters
    ----------
    store : pictures that are in it are not drawn again; None draws all
    """
    environment = _environment(True)
    if store is not None:
        environment.filters["svg"] = partial(_stored, store)
    return environment.get_template("page.html.j2").render(report=report)


def markdown(report: Mapping[str, Any]) -> str:
    """Return text and tables of the report as Markdown; numbers of plots are in `report.json`."""
    return _environment(False).get_template("page.md.j2").render(report=report)


def _stored(store: ResultStore, plot: Mapping[str, Any]) -> str:
    """Return a picture from a store; draw and store it if it is not there."""
    from kvtq_hw.host.sources import source_digest

    tools = {"sources": source_digest(svg.__module__), "matplotlib": version("matplotlib")}
    key = {"picture": plot} | tools
    text = store.get_text(key)
    if text is None:
        text = svg(plot)
        store.put_text(key, text)
    return text


def _environment(escape: bool) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvtq_hw.report"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["svg"] = svg
    environment.filters["slug"] = lambda title: "-".join(title.lower().split())
    environment.filters["pipe"] = lambda text: str(text).replace("|", "\\|")
    environment.tests["a_number"] = lambda value: isinstance(value, int | float)
    environment.tests["a_long_text"] = lambda value: isinstance(value, str) and len(value) > _LONG
    return environment


def _cell(value: str | int | float | None) -> str:
    """Format a table's cell: with separated thousands; None becomes a dash."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return str(value)
