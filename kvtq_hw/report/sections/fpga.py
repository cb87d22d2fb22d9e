"""FPGA: resources after synthesis, and resources and clock after place and route."""

from __future__ import annotations

from kvtq_hw.report.content import Inputs, Section, Table
from kvtq_hw.report.sections.recorded import recorded

__all__ = ["build"]

_KINDS = ("lut", "carry", "ff", "lutram", "bram", "dsp")


def build(inputs: Inputs) -> Section | None:
    """Make the tables of `kvtq-hw fpga`."""
    tables = []
    for entry in recorded(inputs.results, "fpga", inputs.config):
        title = f"{entry.config}, {entry.data['block']}"
        tables.append(
            Table(
                f"{title}, after synthesis",
                "measured",
                entry.command,
                ("family", "LUT", "carry", "flip-flops", "LUT RAM", "block RAM", "multipliers"),
                tuple(
                    (row["family"], *(row[kind] for kind in _KINDS))
                    for row in entry.data["families"].values()
                ),
                entry.note,
            )
        )
        if places := entry.data["place_and_route"]:
            tables.append(
                Table(
                    f"{title}, after place and route",
                    "measured",
                    entry.command,
                    ("device", "logic cells", "flip-flops", "block RAM", "multipliers", "MHz"),
                    tuple(
                        (
                            row["device"],
                            *(row[kind] for kind in ("logic_cells", "ff", "bram", "dsp")),
                            row["fmax_mhz"],
                        )
                        for row in places.values()
                    ),
                    " ".join(
                        ["With a harness of one flip-flop for each bit of the ports.", entry.note]
                    ).strip(),
                )
            )
    if not tables:
        return None
    return Section(
        "FPGA",
        "By Yosys and nextpnr, one seed, the smallest device that holds the block.",
        tuple(tables),
    )
