"""Plots as SVG for a page, readable without colour: by markers, dashes, hatches and labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["svg"]

# Colours that colour-blind readers can distinguish (Okabe and Ito), and marks that distinguish
# series in black and white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#777777")
_MARKERS = "os^DvXP*"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_HATCHES = ("", "//", "\\\\", "xx", "..", "++", "oo", "--")

#: Places of a label around its point, in points: shift, and which side of the text is there.
_PLACES = (
    ((6, 0), ("left", "center")),
    ((-6, 0), ("right", "center")),
    ((0, 6), ("center", "bottom")),
    ((0, -6), ("center", "top")),
    ((5, 5), ("left", "bottom")),
    ((-5, 5), ("right", "bottom")),
    ((5, -5), ("left", "top")),
    ((-5, -5), ("right", "top")),
)

#: Width of a picture in inches, and characters in a line of its legend, marks included.
_WIDTH, _LEGEND = 5.4, 84

#: A segment of a bar is labelled if it is at least this share of the longest bar.
_LABELLED = 0.08


def svg(plot: Mapping[str, Any]) -> str:
    """Draw a plot of `report.json` as an <svg> element without outside references.

    The same plot gives the same text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.hashsalt": plot["title"], "svg.fonttype": "path", "font.size": 9}
    with matplotlib.rc_context(style):
        bars = len(plot["series"][0]["labels"]) if plot["kind"] == "bar" else 0
        figure = Figure(figsize=(_WIDTH, max(3.5, 0.9 + 0.34 * bars)), layout="constrained")
        axes = figure.subplots()
        if bars:
            _draw_bars(axes, plot["series"])
        else:
            _draw_points(axes, plot)
        axes.set_xlabel(plot["x_label"])
        axes.set_ylabel(plot["y_label"])
        axes.spines[["top", "right"]].set_visible(False)
        if len(plot["series"]) > 1:
            longest = max(len(one["name"]) for one in plot["series"])
            columns = max(1, min(3, _LEGEND // (longest + 7)))
            figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
        _label_points(figure, axes, plot["series"])
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def _draw_bars(axes: Axes, series: Sequence[Mapping[str, Any]]) -> None:
    """Draw series as bars stacked on one another, with the sum at each bar's end."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ends: dict[str, float] = {}  # where the next series' bars begin, by label
    segments = []
    for index, one in enumerate(series):
        look = index % len(_COLOURS)
        labels = list(one["labels"])
        starts = [ends.get(label, 0.0) for label in labels]
        ends |= {label: start + x for label, start, x in zip(labels, starts, one["x"], strict=True)}
        bars = axes.barh(
            labels,
            one["x"],
            left=starts,
            color=_COLOURS[look],
            edgecolor="black",
            hatch=_HATCHES[look],
            alpha=0.8,
            label=one["name"],
        )
        segments.append((bars, one["x"]))
    longest = max(ends.values())
    for bars, lengths in segments:
        if len(segments) > 1:
            inside = [_short(x) if x >= _LABELLED * longest else "" for x in lengths]
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            for text in axes.bar_label(bars, inside, label_type="center", fontsize=7):
                text.set_bbox(white if text.get_text() else None)
    axes.bar_label(segments[-1][0], [_short(end) for end in ends.values()], padding=3, fontsize=8)
    axes.set_xlim(right=1.14 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_points(axes: Axes, plot: Mapping[str, Any]) -> None:
    """Draw series as lines with marks, as separate marks, or as lines alone if they are joined."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    for index, series in enumerate(plot["series"]):
        look = index % len(_COLOURS)
        lines = plot["kind"] == "line" or series["joined"]
        axes.plot(
            series["x"],
            series["y"],
            color="#555555" if series["joined"] else _COLOURS[look],
            marker="none" if series["joined"] else _MARKERS[look],
            markersize=5,
            linestyle=_DASHES[look] if lines else "none",
            linewidth=1.4,
            label="_" if series["joined"] and series["labels"] else series["name"],
        )
    if plot["log_x"]:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    if plot["log_y"]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(LogFormatter())  # in a range of less than a decade
    axes.grid(True, alpha=0.3)


def _label_points(figure: Figure, axes: Axes, series: Sequence[Mapping[str, Any]]) -> None:
    """Write the labels of points beside them, where they cover no point and no other label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    points = [
        (x, y, label)
        for one in series
        if one["y"] and one["labels"]
        for x, y, label in zip(one["x"], one["y"], one["labels"], strict=True)
        if label
    ]
    if not points:
        return
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # axes stay where labels were tried
    taken = []
    for x, y, _ in points:
        at = axes.transData.transform((x, y))
        taken.append(Bbox.from_bounds(at[0] - 4, at[1] - 4, 8, 8))
    for number, (x, y, label) in enumerate(points):
        others = taken[:number] + taken[number + 1 :]
        tried = []
        for shift, (horizontal, vertical) in _PLACES:
            text = axes.annotate(
                label,
                (x, y),
                shift,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0},
            )
            box = text.get_window_extent(canvas.get_renderer())
            inside = axes.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1 and box.y0 > axes.bbox.y0
            tried.append((sum(map(box.overlaps, others)) + 2 * (not inside), text, box))
        best = min(tried, key=lambda one: one[0])
        for one in tried:
            if one is not best:
                one[1].remove()
        taken.append(best[2])


def _short(value: float) -> str:
    """Format a number of a bar to three digits, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value: float, position: int | None = None) -> str:
    """Format a tick without an exponent; large values in thousands or millions."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if value >= size and value % size == 0:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
