"""One section a module: `build(inputs)` gives a `kvtq_hw.report.content.Section`.

`SECTIONS` is their order on the page. Imports of torch, simulators and synthesis belong inside
functions.
"""

from __future__ import annotations

from collections.abc import Callable

from kvtq_hw.report.content import Inputs, Section
from kvtq_hw.report.sections import (
    area,
    cycles,
    headline,
    multipliers,
    quality,
    roofline,
    tools,
    traffic,
    zeros,
)

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Callable[[Inputs], Section]] = {
    "headline": headline.build,
    "quality": quality.build,
    "area": area.build,
    "cycles": cycles.build,
    "roofline": roofline.build,
    "multipliers": multipliers.build,
    "traffic": traffic.build,
    "zeros": zeros.build,
    "tools": tools.build,
}
