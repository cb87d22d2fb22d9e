"""Pictures: quality against speed and energy, area, energy by part and roofline, at one glance."""

from __future__ import annotations

from kvtq_hw.report.content import Inputs, Section
from kvtq_hw.report.sections.engines import areas, roofline
from kvtq_hw.report.sections.pareto import divergences, per_area, per_energy
from kvtq_hw.report.sections.recorded import recorded
from kvtq_hw.report.sections.system_energy import SHOWN, all_entries, command_of, energy_plot

__all__ = ["build"]


def build(inputs: Inputs) -> Section | None:
    """Draw the recorded comparison with the longest context, and the first model's energies."""
    compared = recorded(inputs.results, "compare", inputs.config)
    plots = []
    if compared:
        longest = max(compared, key=lambda entry: entry.data["tokens"])
        plots += [per_area(longest), areas(longest), roofline(longest)]
    if energies := all_entries(inputs):
        system, entries = next(iter(energies.items()))
        where = system.model, SHOWN, entries[SHOWN], inputs.memory_pj
        plots += [
            per_energy(*where, divergences(compared), command_of(inputs)),
            energy_plot(system, entries[SHOWN], inputs.memory_pj, command_of(inputs)),
        ]
    drawn = tuple(plot for plot in plots if plot is not None)
    if not drawn:
        return None
    return Section(
        "In pictures",
        "Area of cells, SRAM aside; one clock for all engines. Quality was measured at 1,024 "
        "tokens, of ternary codes in the hardware's integers, of integer formats in float. The "
        "sections below have the numbers.",
        (),
        drawn,
    )
