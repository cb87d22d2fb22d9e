"""Energy of an engine while it runs: toggles of its netlist's nets, times what a toggle costs.

The netlist is simulated with what the RTL's ports saw in a simulation, and must answer as the RTL
did in every cycle. A toggle of a net costs C V^2 / 2 of the pins that the net drives: wires have no
capacitance, memories, clock trees and glitches are not there, so this is a lower bound and a
projection. A full library adds the energies that it gives for what happens inside a cell.
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
    """What a block did in one run.

    Parameters
    ----------
    toggles : int
        Changes of the nets that its cells drive (measured).
    switching_pj : float
        Energy of these toggles in the pins that the nets drive (projected).
    clock_pj : float
        Energy of the clock in the flip-flops' clock pins (projected).
    internal_pj : float
        Energy inside the cells, by the library's tables, the clock's share included; 0 with a
        library without tables.
    """

    toggles: int
    switching_pj: float
    clock_pj: float
    internal_pj: float

    @property
    def total_pj(self) -> float:
        """All of it."""
        return self.switching_pj + self.clock_pj + self.internal_pj

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: round(value, 3) for key, value in asdict(self).items()} | {
            "total_pj": round(self.total_pj, 3)
        }


@dataclass(frozen=True)
class PowerReport:
    """Energies of one run by block, as `row_of` names it; "engine" is the logic outside the blocks.

    Parameters
    ----------
    cycles : int
        Clock cycles from the end of reset to the end of the run.
    """

    config: EngineConfig
    library: str
    library_source: str
    internal: bool
    cycles: int
    blocks: dict[str, BlockPower]

    @property
    def total(self) -> BlockPower:
        """All blocks together."""
        rows = self.blocks.values()
        return BlockPower(
            sum(row.toggles for row in rows),
            sum(row.switching_pj for row in rows),
            sum(row.clock_pj for row in rows),
            sum(row.internal_pj for row in rows),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with all that the numbers stand on."""
        return {
            "tags": {"toggles": "measured", "cycles": "measured", "energy": "projected"},
            "config": self.config.model_dump(),
            "library": {"name": self.library, "source": self.library_source},
            "internal_energies": self.internal,
            "cycles": self.cycles,
            "blocks": {name: row.as_dict() for name, row in self.blocks.items()},
            "total": self.total.as_dict(),
        }


def measure_power(
    config: EngineConfig,
    recording: Recording,
    liberty: Liberty | None = None,
    store: ResultStore | None = None,
) -> PowerReport:
    """Energy of the engine in a recorded run.

    Parameters
    ----------
    recording : of the ports of the engine of `config`, from before the end of reset
    liberty : library of cells; without one, the shipped library
    store : netlists so far; without one, those in the user's cache folder

    Raises
    ------
    UserError
        When the library is unsuitable, or the netlist answers otherwise than the RTL did.
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
    internal = liberty.has_timing
    return PowerReport(config, liberty.name, liberty.source, internal, cycles, ordered)


def _instances(netlist: str, rows: Mapping[str, str]) -> dict[str, str]:
    """Row of each instance in the engine's own netlist, from those of the modules."""
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
    """Sums over cells, in picojoules."""
    energy = CellEnergy(liberty)
    loads = [0.0] * mapped.gates.nets
    for cell in mapped.cells:
        for pin, net in cell.inputs.items():
            loads[net] += energy.capacitance(cell.kind, pin)
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0])
    for cell in mapped.cells:
        row = sums[instances.get(cell.name.partition(".")[0], "engine")]
        for pin, net in cell.outputs.items():
            row[0] += toggles[net]
            row[1] += toggles[net] * energy.switching(loads[net])
            row[3] += toggles[net] * energy.internal(cell.kind, pin, loads[net])
        for pin, net in cell.inputs.items():
            changes = 2 * cycles if pin == cell.clock else toggles[net]
            row[3] += changes * energy.internal(cell.kind, pin)
            if pin == cell.clock:
                row[2] += changes * energy.switching(energy.capacitance(cell.kind, pin))
    return {
        block: BlockPower(int(count), switching, clock, internal)
        for block, (count, switching, clock, internal) in sums.items()
    }
