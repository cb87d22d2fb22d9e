"""Area of an engine, block by block, from its netlist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.estimates.blocks import engine_parts
from kvtq_hw.estimates.lane_rows import row_of
from kvtq_hw.estimates.liberty import Liberty, shipped_liberty
from kvtq_hw.estimates.store import design_key, user_store
from kvtq_hw.estimates.synthesis import CLOCK_MHZ, Mapping, map_part, mapping_key
from kvtq_hw.estimates.workers import of_each_part
from kvtq_hw.host.results import ResultStore
from rtl.verilog import generator_version

__all__ = ["Area", "AreaReport", "measure_area"]

#: Transistors of a NAND gate of two inputs in static CMOS.
_NAND2_TRANSISTORS = 4


@dataclass(frozen=True)
class _Parts:
    """Parts of an engine as stored: block, instances and the key of the mapping of each part."""

    parts: list[tuple[str, int, dict[str, Any]]]


@dataclass(frozen=True)
class Area:
    """Area of a block with all its instances, or of several blocks together.

    Parameters
    ----------
    instances : int
    cells : dict[str, int]
        Number of library cells by name.
    um2 : float
        Area of the cells alone, square micrometres: no wires, no utilization, no memories.
    nand2 : float
        Area of the cells divided by the area of the library's smallest two-input NAND gate.
    flip_flops : int
        Bits in flip-flops.
    memory_bits : int
        Bits of memories. The area does not include the macros or register files for these bits.
    transistors : int
        Estimate for generic gates, without any library.
    """

    instances: int
    cells: dict[str, int]
    um2: float
    nand2: float
    flip_flops: int
    memory_bits: int
    transistors: int

    @property
    def nand2_of_transistors(self) -> float:
        """Transistors divided by those of a two-input NAND gate: an estimate without a library."""
        return self.transistors / _NAND2_TRANSISTORS

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "instances": self.instances,
            "cells": sum(self.cells.values()),
            "um2": self.um2,
            "nand2": self.nand2,
            "flip_flops": self.flip_flops,
            "ram_bits": self.memory_bits,
            "transistors": self.transistors,
            "nand2_of_transistors": self.nand2_of_transistors,
            "cells_by_type": dict(sorted(self.cells.items())),
        }


@dataclass(frozen=True)
class AreaReport:
    """Areas of the blocks of one configuration.

    Parameters
    ----------
    config : EngineConfig
    library : str
        Name of the library, as written in its text.
    library_source : str
        Path of the library's file, or "shipped".
    clock_gate : str | None
        Cell of the clock gates; None if every flip-flop is clocked in every cycle.
    blocks : dict[str, Area]
        Area by the block's `row_of`; "engine" is the logic outside the blocks.
    """

    config: EngineConfig
    library: str
    library_source: str
    clock_gate: str | None
    blocks: dict[str, Area]

    @property
    def total(self) -> Area:
        """Sum over all blocks."""
        return _sum(self.blocks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with everything that the numbers depend on."""
        return {
            "tag": "measured",
            "config": self.config.model_dump(),
            "library": {"name": self.library, "source": self.library_source},
            "clock_gate": self.clock_gate,
            "clock_mhz": CLOCK_MHZ,
            "generator": generator_version(),
            "blocks": {name: area.as_dict() for name, area in self.blocks.items()},
            "total": self.total.as_dict(),
        }


def measure_area(
    config: EngineConfig,
    block: str | None = None,
    liberty: Liberty | None = None,
    store: ResultStore | None = None,
    jobs: int | None = None,
) -> AreaReport:
    """Measure the area of an engine, or of one block, from its netlist.

    Blocks are mapped in parallel. The same sources, library and tools give the same numbers to the
    digit, whether stored or measured again.

    Parameters
    ----------
    config : EngineConfig
    block : a name in `rtl.blocks.BLOCKS`; None for all blocks of the engine
    liberty : library of cells; None for the shipped area-only library
    store : store of results; None for the store in the user's cache folder
    jobs : blocks mapped at the same time; None for one per processor

    Raises
    ------
    UserError
        For an unknown block or an unsuitable library.
    """
    liberty = liberty or shipped_liberty()
    store = store or user_store()
    areas: dict[str, list[Area]] = {}
    for name, instances, mapping in _mappings(config, block, liberty, store, jobs):
        areas.setdefault(row_of(name, config), []).append(_area(instances, mapping, liberty))
    blocks = {name: _sum(parts) for name, parts in areas.items()}
    return AreaReport(config, liberty.name, liberty.source, liberty.clock_gate_cell, blocks)


def _mappings(
    config: EngineConfig,
    block: str | None,
    liberty: Liberty,
    store: ResultStore,
    jobs: int | None,
) -> list[tuple[str, int, Mapping]]:
    """Return block, instances and mapping per part; generate no netlist if all are stored."""
    index = {
        "what": "parts",
        **liberty.key,
        **design_key(config, block),
    }
    if (known := store.get(index, _Parts)) is not None:
        found = [(name, n, store.get(key, Mapping)) for name, n, key in known.parts]
        if all(mapping is not None for _, _, mapping in found):
            return [(name, n, mapping) for name, n, mapping in found if mapping]
    parts = engine_parts(config, block)
    mappings = of_each_part(lambda part: map_part(part, liberty, store), parts, jobs)
    keys = [(part.block, part.instances, mapping_key(part, liberty)) for part in parts]
    store.put(index, {"parts": keys})
    return [
        (part.block, part.instances, mapping) for part, mapping in zip(parts, mappings, strict=True)
    ]


def _area(instances: int, mapping: Mapping, liberty: Liberty) -> Area:
    um2 = round(instances * mapping.area, 4)
    return Area(
        instances=instances,
        cells={name: instances * count for name, count in mapping.cells.items()},
        um2=um2,
        nand2=round(um2 / liberty.nand2_area, 4),
        flip_flops=instances * mapping.flip_flops,
        memory_bits=instances * mapping.memory_bits,
        transistors=instances * mapping.transistors,
    )


def _sum(areas: Iterable[Area]) -> Area:
    parts = list(areas)
    return Area(
        instances=sum(part.instances for part in parts),
        cells=dict(sum((Counter(part.cells) for part in parts), Counter())),
        um2=round(sum(part.um2 for part in parts), 4),
        nand2=round(sum(part.nand2 for part in parts), 4),
        flip_flops=sum(part.flip_flops for part in parts),
        memory_bits=sum(part.memory_bits for part in parts),
        transistors=sum(part.transistors for part in parts),
    )
