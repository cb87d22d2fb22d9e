"""Draw the README's pictures of quality against speed and against energy, as the report does.

Usage: python scripts/draw_overview.py

Writes docs/img/speed.svg and docs/img/energy.svg from the recorded results in docs/results.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from kvtq_hw.contract.config import load_config
from kvtq_hw.report.content import Inputs
from kvtq_hw.report.plots import svg
from kvtq_hw.report.sections.pictures import build

ROOT = Path(__file__).resolve().parent.parent

#: File of each picture, by the beginning of its title in the report.
PICTURES = {"Quality against speed": "speed.svg", "Quality against tokens per joule": "energy.svg"}


def pictures() -> dict[str, str]:
    """Return the text of each picture, by the name of its file."""
    section = build(Inputs(load_config("smollm2"), (), "smollm2", ROOT / "docs" / "results"))
    plots = () if section is None else section.plots
    drawn = {
        file: svg(asdict(plot))
        for plot in plots
        for title, file in PICTURES.items()
        if plot.title.startswith(title)
    }
    if len(drawn) < len(PICTURES):
        raise ValueError(f"docs/results: {len(drawn)} of {len(PICTURES)} pictures can be drawn")
    return drawn


def main() -> None:
    for name, text in pictures().items():
        (ROOT / "docs" / "img" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
