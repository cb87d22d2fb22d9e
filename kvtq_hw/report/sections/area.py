"""Area: the engine by block, from its mapped netlist."""

from __future__ import annotations

from kvtq_hw.report.content import Cell, Inputs, Plot, Section, Series, Table

__all__ = ["build"]


def build(inputs: Inputs) -> Section:
    """Map the netlist with the shipped library, or use the stored mapping."""
    from kvtq_hw.estimates.area import measure_area

    report = measure_area(inputs.config)
    command = f"kvtq-hw area --preset {inputs.config.name}"
    total = report.total
    blocks = sorted(report.blocks.items(), key=lambda item: -item[1].um2)
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            area.instances,
            round(area.um2),
            f"{100 * area.um2 / total.um2:.1f} %",
            round(area.nand2),
            area.flip_flops,
            area.memory_bits,
            area.transistors,
        )
        for name, area in (*blocks, ("all", total))
    ]
    columns = (
        "block",
        "instances",
        "um2",
        "share",
        "NAND2",
        "flip-flops",
        "memory bits",
        "transistors",
    )
    shown = [(name, area) for name, area in blocks if area.um2][::-1]
    return Section(
        "Area by block",
        f"Cells of {report.library} after Yosys and abc, without wires, utilization and memories; "
        "memory bits stand beside them. Transistors are an estimate from generic gates.",
        (Table(f"The engine {inputs.config.name}", "measured", command, columns, tuple(rows)),),
        (
            Plot(
                "Area by block",
                "measured",
                command,
                "bar",
                "um2 of cells",
                "",
                (
                    Series(
                        "cells",
                        tuple(area.um2 for _, area in shown),
                        (),
                        tuple(name for name, _ in shown),
                    ),
                ),
                f"The longest bar, {shown[-1][0]}, has "
                f"{100 * shown[-1][1].um2 / total.um2:.0f} % of the engine's cells.",
            ),
        ),
    )
