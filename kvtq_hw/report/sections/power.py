"""Power: toggles of the netlist in a captured attention, and their energy by block."""

from __future__ import annotations

from kvtq_hw.estimates.lane_rows import LANE_ROWS
from kvtq_hw.report.content import Inputs, Plot, Section, Series, Table
from kvtq_hw.report.sections.recorded import Recorded, recorded

__all__ = ["build"]


def build(inputs: Inputs) -> Section | None:
    """Make the tables of `kvtq-hw power`: all blocks as captured, and the lanes per variant."""
    tables, plots = [], []
    for entry in recorded(inputs.results, "power", inputs.config):
        if "captured" not in entry.data["variants"]:
            continue
        tables.append(_by_block(entry))
        plots.append(_plot(entry))
        if len(entry.data["variants"]) > 1:
            tables.append(_variants(entry))
    if not tables:
        return None
    return Section(
        "Power",
        "Toggles are counted on the mapped netlist while it repeats an attention of a real decode, "
        "settled values only. Energies count C V^2 / 2 of input pins: no wires, clock tree, "
        "glitches or memories, so they are a lower bound.",
        tuple(tables),
        tuple(plots),
    )


def _title(entry: Recorded) -> str:
    data = entry.data
    place = f"layer {data['layer']}, KV head {data['head']}, {data['tokens']} tokens"
    return f"{entry.config}, {place}, {data['variants']['captured']['library']['name']}"


def _by_block(entry: Recorded) -> Table:
    captured = entry.data["variants"]["captured"]
    kinds = ("switching_pj", "clock_pj", "internal_pj", "total_pj")
    token = entry.data["attentions_per_token"]
    total = captured["total"]["total_pj"]
    note = f"{captured['cycles']} cycles."
    if token:
        note += f" All {token} attentions of a token alike: {token * total / 1e6:.2f} uJ a token."
    return Table(
        f"Energy of one attention in pJ: {_title(entry)}",
        "projected",
        entry.command,
        ("block", "toggles (measured)", "nets", "clock pins", "inside cells", "total"),
        tuple(
            (block, row["toggles"], *(round(row[kind]) for kind in kinds))
            for block, row in (*captured["blocks"].items(), ("all", captured["total"]))
        ),
        f"{note} {entry.note}".strip(),
    )


def _variants(entry: Recorded) -> Table:
    rows = []
    for name, variant in entry.data["variants"].items():
        rows += [
            (name, block, variant["cycles"], row["toggles"], round(row["total_pj"]))
            for block, row in variant["blocks"].items()
            if block in LANE_ROWS  # the blocks whose energy depends on digits and arithmetic
        ]
        total = variant["total"]
        rows.append((name, "all", variant["cycles"], total["toggles"], round(total["total_pj"])))
    return Table(
        f"The lanes with something else in their place: {_title(entry)}",
        "projected",
        entry.command,
        ("variant", "block", "cycles", "toggles (measured)", "total pJ"),
        tuple(rows),
        "no-zero-keys: only select_add compares, as other scores make other weights; "
        "no-zero-values: from select_accumulate on.",
    )


def _plot(entry: Recorded) -> Plot:
    blocks = entry.data["variants"]["captured"]["blocks"]
    shown = sorted(blocks.items(), key=lambda item: item[1]["total_pj"])
    total = entry.data["variants"]["captured"]["total"]["total_pj"]
    return Plot(
        f"Energy by block: {_title(entry)}",
        "projected",
        entry.command,
        "bar",
        "pJ an attention",
        "",
        (
            Series(
                "all kinds",
                tuple(row["total_pj"] for _, row in shown),
                (),
                tuple(name for name, _ in shown),
            ),
        ),
        f"The longest bar, {shown[-1][0]}, has {100 * shown[-1][1]['total_pj'] / total:.0f} % of "
        "the energy.",
    )
