"""Draw true bits against perplexity, and against retrieval, from results of `kvtq-hw eval`.

One picture shows everything in the files: one point per code, with colour and shape by family, and
the Pareto frontier as a line. The ending of the picture's file name gives its format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvtq_hw.commands.frame.options import OutputFile, json_option, write_json
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import whole
from kvtq_hw.estimates.frontier import frontier
from kvtq_hw.estimates.quality_files import read_quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Point", "command", "read_points"]

# Families of codes by the beginning of their spelling (for a code table: the ending), each with
# its title, colour (safe for colour-blind readers) and marker.
_FAMILIES = (
    (".toml", "balanced ternary, digits per layer", "#882255", "*"),
    ("balanced:", "balanced ternary", "#0072b2", "o"),
    ("residual:", "residual ternary", "#56b4e9", "s"),
    ("kvtq:", "KVTQ as published", "#d55e00", "X"),
    ("kivi:", "KIVI", "#009e73", "^"),
    ("oscar", "OSCAR", "#332288", "p"),
    ("transformers:", "transformers' QuantizedCache", "#cc79a7", "v"),
    ("int", "integers per token", "#e69f00", "D"),
)
_OTHER = ("other", "#777777", "P")
# Fields that must be equal in all files of one picture.
_SETTING = {"model", "model_fingerprint", "text_sha256", "context", "segments"}
# A format with a larger perplexity ratio is drawn at the edge: it would flatten everything else.
_WORST_RATIO = 1.5


@dataclass(frozen=True)
class Point:
    """A code's stored bits per element, perplexity ratio to unquantized, and retrieved share."""

    code: str
    bits: float
    perplexity_ratio: float
    needle: float | None


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    required=True,
    type=OutputFile(".svg", ".png"),
    help="Picture, .svg or .png; may be given twice.",
)
@json_option
def command(files: Sequence[Path], outputs: Sequence[Path], json_file: Path | None) -> None:
    """Draw FILES, written by `kvtq-hw eval --json`, as a Pareto plot."""
    points, title = read_points(files)
    _draw(points, title, outputs)
    write_json(json_file, {"points": [asdict(point) for point in points]})


def read_points(files: Sequence[Path]) -> tuple[list[Point], str]:
    """Return the codes of all files except the model's own cache, and a title with the setting.

    Raises
    ------
    UserError
        When a file is not from `kvtq-hw eval`, or files were measured on different settings.
    """
    points: dict[str, Point] = {}
    setting: dict[str, str | int] = {}
    for file, result in zip(files, read_quality(files), strict=True):
        content = result.content
        found = content.model_dump(include=_SETTING)
        if setting and found != setting:
            different = ", ".join(key for key in found if found[key] != setting[key])
            raise UserError(
                f"{str(file)!r} was measured on something else than {str(files[0])!r}: {different}"
            )
        setting = found
        for row in content.rows:
            if row.code != "unquantized":
                points[row.code] = Point(
                    row.code, row.bits_per_element, row.perplexity_ratio, row.needle
                )
    if not points:
        raise UserError("files hold no code but the unquantized model's; must be at least one")
    title = f"{setting['model']}, {setting['segments']} x {setting['context']} tokens"
    return list(points.values()), title


def _draw(points: list[Point], title: str, outputs: Sequence[Path]) -> None:
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "kvtq-hw"  # the same input, the same file
    from matplotlib import pyplot

    retrieved = [point for point in points if point.needle is not None]
    panels = 2 if retrieved else 1
    figure, axes = pyplot.subplots(
        1, panels, figsize=(6.4 * panels, 4.6), layout="constrained", squeeze=False
    )
    left = axes[0][0]
    _scatter(left, [(p, 100 * (min(p.perplexity_ratio, _WORST_RATIO) - 1)) for p in points])
    best = frontier(
        [p for p in points if p.perplexity_ratio <= _WORST_RATIO],
        lambda p: (p.bits, p.perplexity_ratio),
    )
    left.step(
        [p.bits for p in best],
        [100 * (p.perplexity_ratio - 1) for p in best],
        where="post",
        color="#aaaaaa",
        zorder=1,
    )
    left.set_yscale("symlog", linthresh=1)
    left.set_ylabel("perplexity above unquantized, %")
    left.set_title(title)
    left.legend(fontsize="small")
    if retrieved:
        right = axes[0][1]
        _scatter(right, [(p, 100 * p.needle) for p in retrieved if p.needle is not None])
        right.set_ylabel("hidden numbers retrieved, %")
        right.set_ylim(-3, 103)
        right.set_title("needles in a haystack")
    for axis in axes[0]:
        axis.set_xlabel("stored bits per element, everything included")
        axis.grid(alpha=0.3)
    for file in outputs:
        metadata = {"Date": None} if file.suffix == ".svg" else {}
        with whole(file, "--output") as scratch:
            figure.savefig(scratch, format=file.suffix[1:], dpi=150, metadata=metadata)
    pyplot.close(figure)


def _scatter(axis: Axes, heights: list[tuple[Point, float]]) -> None:
    """Draw points at given heights, one series per family."""
    for prefix, label, colour, marker in (*_FAMILIES, ("", *_OTHER)):
        chosen = [(p, y) for p, y in heights if _family(p.code) == prefix]
        if chosen:
            axis.scatter(
                [p.bits for p, _ in chosen],
                [y for _, y in chosen],
                color=colour,
                marker=marker,
                label=label,
                zorder=2,
            )


def _family(code: str) -> str:
    if code.endswith(".toml"):  # a code table
        return ".toml"
    return next((prefix for prefix, *_ in _FAMILIES if code.startswith(prefix)), "")
