"""Sections of the report, one per module: `build(inputs)` returns a `report.content.Section`.

`build` returns None if the section has nothing to show. `SECTIONS` gives the order on the page.
Imports of torch, simulators and synthesis belong inside functions.
"""

from __future__ import annotations

from collections.abc import Callable

from kvtq_hw.report.content import Inputs, Section
from kvtq_hw.report.sections import (
    area,
    comparison,
    cycles,
    fpga,
    headline,
    multipliers,
    pictures,
    power,
    quality,
    roofline,
    sweep,
    system_energy,
    timing,
    tools,
    traffic,
    verdict,
    what_if,
    zeros,
)

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Callable[[Inputs], Section | None]] = {
    "verdict": verdict.build,
    "pictures": pictures.build,
    "what_if": what_if.build,
    "headline": headline.build,
    "comparison": comparison.build,
    "quality": quality.build,
    "area": area.build,
    "cycles": cycles.build,
    "roofline": roofline.build,
    "timing": timing.build,
    "power": power.build,
    "system_energy": system_energy.build,
    "fpga": fpga.build,
    "multipliers": multipliers.build,
    "sweep": sweep.build,
    "traffic": traffic.build,
    "zeros": zeros.build,
    "tools": tools.build,
}
