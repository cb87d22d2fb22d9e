"""System energy: engine, on-chip memories and KV memory per decoded token, by cache format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtq_hw.contract.codes import CodeTable
from kvtq_hw.estimates.candidates import Candidate
from kvtq_hw.estimates.system_energy import (
    CONTEXTS,
    SRAM,
    SYSTEMS,
    Measured,
    System,
    SystemEnergy,
    candidates,
    measurements,
    nearest,
    system_energy,
)
from kvtq_hw.estimates.traffic import MEMORIES
from kvtq_hw.report.content import Inputs, Plot, Section, Series, Table
from kvtq_hw.report.sections.formats import TABLES, short_name
from kvtq_hw.report.sections.recorded import Recorded, recorded

__all__ = [
    "SHOWN",
    "Entry",
    "all_entries",
    "build",
    "command_of",
    "compared_formats",
    "energy_plot",
]

#: Context of the plots, and of the comparison of memories.
SHOWN = CONTEXTS[1]


@dataclass(frozen=True)
class Entry:
    """Energy of a format on an engine, and that of INT8 on as many lanes if there is any."""

    name: str
    code: str
    measured: Measured
    energy: SystemEnergy
    int8: SystemEnergy | None

    @property
    def cells(self) -> tuple[str, int, str]:
        """Format, lanes and planes per cycle."""
        planes = "{}/{}".format(*self.measured.planes)
        return self.name, self.measured.config.lanes, planes

    def ratio(self, memory_pj: float) -> float | None:
        """Return the energy over that of INT8."""
        if self.int8 is None:
            return None
        return round(self.energy.total(memory_pj) / self.int8.total(memory_pj), 2)


def build(inputs: Inputs) -> Section | None:
    """Make the tables of each model: the parts by context, and the ratio to INT8 by memory."""
    files = recorded(inputs.results, "power", inputs.config)
    energies = all_entries(inputs)
    if not energies:
        return None
    command = command_of(inputs)
    tables, plots = [], []
    for system, entries in energies.items():
        tables += [
            _parts(system, entries, inputs.memory_pj, command, files),
            _by_memory(system, entries[SHOWN], command),
        ]
        plots.append(energy_plot(system, entries[SHOWN], inputs.memory_pj, command))
    return Section(
        "Energy of a token",
        "Attention of all layers and KV heads for one decoded token. The engine's energy is that "
        "of a measured attention, scaled by slices, cycles and query heads; the KV memory's is "
        "every bit read or written times an energy per bit. Not counted: the blocks around the "
        "engine, leakage, wires and clock tree, the model's weights.",
        tuple(tables),
        tuple(plots[1:]),  # the first model's is in the section of pictures
    )


def command_of(inputs: Inputs) -> str:
    """Return the command that gives the energies again."""
    return f"kvtq-hw report --preset {inputs.config.name} --memory-pj {inputs.memory_pj:g}"


def compared_formats(inputs: Inputs) -> dict[System, list[tuple[Candidate, Measured]]]:
    """Return all formats on all measured engines that read them, in the order of `candidates`.

    None without a recorded attention.
    """
    files = recorded(inputs.results, "power", inputs.config)
    measured = measurements(entry.data for entry in files)
    if not measured:
        return {}
    folder = inputs.results / "tables"
    code_tables = [CodeTable.load(folder / name) for name in TABLES if (folder / name).is_file()]
    # a ternary configuration if there is one: digits of codes are checked against its planes
    config = max((engine.config for engine in measured), key=lambda config: config.max_planes)
    return {
        system: [
            (candidate, engine)
            for candidate in candidates(config, code_tables)
            for engine in nearest(measured, system)
            if engine.config.cache_format == candidate.config.cache_format
        ]
        for system in SYSTEMS
    }


def all_entries(inputs: Inputs) -> dict[System, dict[int, list[Entry]]]:
    """Return the energies of every model at every context; none without a recorded attention."""
    return {
        system: {tokens: _entries(system, tokens, formats) for tokens in CONTEXTS}
        for system, formats in compared_formats(inputs).items()
    }


def _entries(
    system: System, tokens: int, formats: Sequence[tuple[Candidate, Measured]]
) -> list[Entry]:
    """Return the energies of formats at one context."""
    rows = [
        (candidate, engine, system_energy(system, tokens, candidate, engine))
        for candidate, engine in formats
    ]
    int8 = {
        engine.config.lanes: energy
        for _, engine, energy in rows
        if engine.config.cache_format == "int8"
    }
    return [
        Entry(candidate.name, candidate.code, engine, energy, int8.get(engine.config.lanes))
        for candidate, engine, energy in rows
    ]


def _parts(
    system: System,
    entries: dict[int, list[Entry]],
    memory_pj: float,
    command: str,
    files: Sequence[Recorded],
) -> Table:
    sources = "; ".join(entry.command for entry in files)
    notes = " ".join(dict.fromkeys(entry.note for entry in files))
    return Table(
        f"Energy per token of {system.model}, KV memory of {memory_pj:g} pJ/bit",
        "projected",
        command,
        (
            "tokens",
            "format",
            "lanes",
            "planes per cycle",
            "bits per element",
            "engine, uJ",
            "on chip, uJ",
            "KV memory, uJ",
            "total, uJ",
            "total, INT8 = 1",
        ),
        tuple(
            (
                tokens,
                *entry.cells,
                round(entry.energy.bits_per_element, 3),
                _rounded(entry.energy.engine),
                _rounded(entry.energy.on_chip),
                _rounded(entry.energy.kv_memory(memory_pj)),
                _rounded(entry.energy.total(memory_pj)),
                entry.ratio(memory_pj),
            )
            for tokens, row in entries.items()
            for entry in row
        ),
        f"Engine: toggles measured, scaled from {sources}. On chip: {SRAM.picojoules} pJ per "
        f"access of {SRAM.bits} bits ({SRAM.source}). Digits by layer are those of SmolLM2; "
        f"another model counts with the mean over SmolLM2's layers. {notes}".strip(),
    )


def _by_memory(system: System, entries: Sequence[Entry], command: str) -> Table:
    energies = {"no KV memory": 0.0} | {
        f"{name}, {memory.picojoules_per_bit} pJ/bit": memory.picojoules_per_bit
        for name, memory in MEMORIES.items()
    }
    return Table(
        f"Energy per token of {system.model}, INT8 = 1, by KV memory, {SHOWN} tokens",
        "projected",
        command,
        ("format", "lanes", "planes per cycle", *energies),
        tuple((*entry.cells, *map(entry.ratio, energies.values())) for entry in entries),
        "; ".join(f"{name}: {memory.source}" for name, memory in MEMORIES.items()) + ".",
    )


def energy_plot(system: System, entries: Sequence[Entry], memory_pj: float, command: str) -> Plot:
    """Draw the parts of each format's energy at one context."""
    shown = entries[::-1]  # bars are drawn from below
    labels = tuple(
        f"{short_name(entry.name)}, {'{}/{}'.format(*entry.measured.planes)}"
        if entry.measured.config.is_ternary
        else entry.name
        for entry in shown
    )
    shares = [entry.energy.kv_memory(memory_pj) / entry.energy.total(memory_pj) for entry in shown]
    lanes = ", ".join(sorted({str(entry.measured.config.lanes) for entry in shown}))
    parts = {
        "engine": [entry.energy.engine for entry in shown],
        "on chip": [entry.energy.on_chip for entry in shown],
        "KV memory": [entry.energy.kv_memory(memory_pj) for entry in shown],
    }
    return Plot(
        f"Energy per token of {system.model}, {SHOWN:,} tokens, {memory_pj:g} pJ/bit, "
        f"{lanes} lanes",
        "projected",
        command,
        "bar",
        "uJ per token",
        "",
        tuple(Series(name, tuple(x), (), labels) for name, x in parts.items()),
        f"The KV memory takes {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the energy, "
        "so that a format's bits decide more than its arithmetic.",
    )


def _rounded(microjoules: float) -> float | int:
    """Round to the digits that the model is worth."""
    return round(microjoules) if microjoules >= 100 else round(microjoules, 1)
