"""Energy of a running engine: toggles of the nets of its netlist, times the energy per toggle.

The netlist is simulated with the recorded port values of an RTL simulation, and its outputs must
equal the RTL's in every cycle. A toggle of a net costs C V^2 / 2, where C is the capacitance of the
pins that the net drives. The clock of a flip-flop behind a clock gate counts in cycles in which the
gate is open; the gate's own clock counts always. Wires, memories, clock trees and glitches are not
counted, so the energy is a lower bound and a projection. A full library adds its energies inside
cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.blocks import engine_parts
from kvtq_hw.estimates.cell_energy import CellEnergy
from kvtq_hw.estimates.gates import Mapped, link
from kvtq_hw.estimates.lane_rows import row_of
from kvtq_hw.estimates.liberty import Liberty, shipped_liberty
from kvtq_hw.estimates.store import user_store
from kvtq_hw.estimates.synthesis import mapped_netlist
from kvtq_hw.estimates.workers import of_each_part
from kvtq_hw.host.results import ResultStore

if TYPE_CHECKING:
    from sim.bench.recording import Recording

__all__ = ["BlockPower", "PowerReport", "measure_power"]


@dataclass(frozen=True)
class BlockPower:
    """Toggles and energies of a block in one run.

    Parameters
    ----------
    toggles : int
        Toggles of the nets that the block's cells drive (measured).
    switching_pj : float
        Energy of these toggles in the pins that the nets drive (projected).
    clock_pj : float
        Energy of the clock in the clock pins of flip-flops and clock gates (projected).
    internal_pj : float
        Energy inside the cells by the library's tables, with the clock's share; 0 if the library
        has no tables.
    """

    toggles: int
    switching_pj: float
    clock_pj: float
    internal_pj: float

    @property
    def total_pj(self) -> float:
        """Total energy of the block, picojoules."""
        return self.switching_pj + self.clock_pj + self.internal_pj

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: round(value, 3) for key, value in asdict(self).items()} | {
            "total_pj": round(self.total_pj, 3)
        }


@dataclass(frozen=True)
class PowerReport:
    """Energies of one run, by block.

    Blocks are named by `row_of`; "engine" is the logic outside the blocks.

    Parameters
    ----------
    cycles : int
        Clock cycles from the end of reset to the end of the run.
    slices : dict[str, int]
        Slices of keys ("key") and of values ("value") that the engine took.
    """

    config: EngineConfig
    library: str
    library_source: str
    clock_gate: str | None
    internal: bool
    cycles: int
    slices: dict[str, int]
    blocks: dict[str, BlockPower]

    @property
    def total(self) -> BlockPower:
        """Sum over all blocks."""
        rows = self.blocks.values()
        return BlockPower(
            sum(row.toggles for row in rows),
            sum(row.switching_pj for row in rows),
            sum(row.clock_pj for row in rows),
            sum(row.internal_pj for row in rows),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with everything that the numbers depend on."""
        return {
            "tags": dict.fromkeys(("toggles", "cycles", "slices"), "measured")
            | {"energy": "projected"},
            "config": self.config.model_dump(),
            "library": {"name": self.library, "source": self.library_source},
            "clock_gate": self.clock_gate,
            "internal_energies": self.internal,
            "cycles": self.cycles,
            "slices": self.slices,
            "blocks": {name: row.as_dict() for name, row in self.blocks.items()},
            "total": self.total.as_dict(),
        }


def measure_power(
    config: EngineConfig,
    recording: Recording,
    liberty: Liberty | None = None,
    store: ResultStore | None = None,
) -> PowerReport:
    """Measure toggles of the engine in a recorded run, and project its energy.

    Parameters
    ----------
    recording : port values of the engine of `config`, from before the end of reset
    liberty : library of cells; None for the shipped library
    store : store of mapped netlists; None for the store in the user's cache folder

    Raises
    ------
    UserError
        When the library is unsuitable, or the netlist's outputs differ from the RTL's.
    """
    from kvtq_hw.estimates.gate_simulation import simulate

    liberty, store = liberty or shipped_liberty(), store or user_store()
    parts = engine_parts(config)
    netlists = of_each_part(lambda part: mapped_netlist(part, liberty, store), parts)
    mapped = link(netlists, parts[-1].top, liberty)
    first = int(recording.inputs["rst"][:, 0].argmin())
    try:
        toggles = simulate(mapped.gates, recording.inputs, recording.outputs, first)
    except ValueError as error:
        raise UserError(f"power: {error}: the netlist is not the RTL's") from None
    cycles = len(recording.inputs["rst"]) - first
    rows = {part.top: row_of(part.block, config) for part in parts}
    instances = _instances(netlists[-1], rows)
    blocks = _energies(mapped, toggles.tolist(), cycles, liberty, instances)
    ordered = {row: blocks[row] for row in rows.values()}
    return PowerReport(
        config,
        liberty.name,
        liberty.source,
        liberty.clock_gate_cell,
        liberty.has_timing,
        cycles,
        {side: _transfers(recording, f"{side}s", first) for side in ("key", "value")},
        ordered,
    )


def _transfers(recording: Recording, stream: str, first: int) -> int:
    """Count the transfers of an input stream from a cycle on."""
    valid, ready = recording.inputs[f"{stream}__valid"], recording.outputs[f"{stream}__ready"]
    return int((valid & ready)[first:].sum())


def _instances(netlist: str, rows: Mapping[str, str]) -> dict[str, str]:
    """Return the row of each instance in the engine's own netlist, from the rows of modules."""
    found = {}
    for line in netlist.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "(" and words[0] in rows:
            found[words[1].lstrip("\\")] = rows[words[0]]
    return found


def _energies(
    mapped: Mapped,
    toggles: list[int],
    cycles: int,
    liberty: Liberty,
    instances: Mapping[str, str],
) -> dict[str, BlockPower]:
    """Sum toggles and energies (picojoules) over the cells of each block."""
    energy = CellEnergy(liberty)
    gated = {clock for clock, _ in mapped.gates.clocks}
    loads = [0.0] * mapped.gates.nets
    for cell in mapped.cells:
        for pin, net in cell.inputs.items():
            loads[net] += energy.capacitance(cell.kind, pin)
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for cell in mapped.cells:
        row = sums[instances.get(cell.name.partition(".")[0], "engine")]
        for pin, net in cell.outputs.items():
            row[3] += toggles[net] * energy.internal(cell.kind, pin, loads[net])
            if net not in gated:  # what a gated clock drives are clock pins, counted below
                row[0] += toggles[net]
                row[1] += toggles[net] * energy.switching(loads[net])
        for pin, net in cell.inputs.items():
            is_clock = pin == cell.clock and net not in gated
            changes = 2 * cycles if is_clock else toggles[net]
            row[3] += changes * energy.internal(cell.kind, pin)
            if pin == cell.clock:
                row[2] += changes * energy.switching(energy.capacitance(cell.kind, pin))
    return {
        block: BlockPower(int(count), switching, clock, internal)
        for block, (count, switching, clock, internal) in sums.items()
    }
