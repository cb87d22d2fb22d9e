"""Plots as SVG for a page: markers, dashes and hatches make them readable without colour."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

__all__ = ["svg"]

# Colours that colour-blind readers can distinguish (Okabe and Ito), and marks that distinguish
# series in black and white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#777777")
_MARKERS = "os^DvXP*"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_HATCHES = ("", "//", "\\\\", "xx", "..", "++", "oo", "--")


def svg(plot: Mapping[str, Any]) -> str:
    """Draw a plot of `report.json` as an <svg> element without outside references.

    The same plot gives the same text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.hashsalt": plot["title"], "svg.fonttype": "path", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        ends: dict[str, float] = {}  # where the next series' bars begin, by label
        for index, series in enumerate(plot["series"]):
            look = index % len(_COLOURS)
            colour, marker = _COLOURS[look], _MARKERS[look]
            if plot["kind"] == "bar":
                labels = list(series["labels"])
                starts = [ends.get(label, 0.0) for label in labels]
                ends |= {
                    label: start + x
                    for label, start, x in zip(labels, starts, series["x"], strict=True)
                }
                axes.barh(
                    labels,
                    series["x"],
                    left=starts,
                    color=colour,
                    edgecolor="black",
                    hatch=_HATCHES[look],
                    alpha=0.8,
                    label=series["name"],
                )
                continue
            dashes = _DASHES[look] if plot["kind"] == "line" else "none"
            axes.plot(
                series["x"],
                series["y"],
                color=colour,
                marker=marker,
                markersize=5,
                linestyle=dashes,
                linewidth=1.4,
                label=series["name"],
            )
        if plot["log_x"]:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
        if plot["log_y"]:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_plain))
        axes.set_xlabel(plot["x_label"])
        axes.set_ylabel(plot["y_label"])
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def _plain(value: float, position: int | None = None) -> str:
    """Format a tick without an exponent; large values in thousands or millions."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size and value % size == 0:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
