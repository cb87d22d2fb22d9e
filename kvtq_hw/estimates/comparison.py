"""Engines side by side: at equal lanes, equal tokens per second, equal memory bandwidth.

A ternary lane takes a cycle for each plane where an integer lane takes one for the whole element,
and reads fewer bits. So lanes alone do not compare: each way fixes one thing and lets the number of
lanes, a divisor of the head dimension, and the planes that a lane takes a cycle follow from it.

Areas are measured on netlists, cycles and bytes are derived. One clock for all engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.estimates.area import AreaReport
from kvtq_hw.estimates.candidates import Candidate
from kvtq_hw.estimates.lane_rows import LANE_ROWS

__all__ = [
    "Row",
    "equal_bandwidth",
    "equal_lanes",
    "equal_speed",
    "smallest",
]

#: Share of the reference's cycles that an engine of equal speed may take more: sinks and window are
#: in more digits than the planes of one cycle, and no number of lanes hides them.
SPEED_TOLERANCE = 0.05


@dataclass(frozen=True)
class Row:
    """One engine in a comparison.

    Cycles and bytes are of one KV head's attention: of the mean layer, rounded up.

    Parameters
    ----------
    name, code : str
        As in `Candidate`.
    layers : int
        Layers that the mean is of; 1 where all are alike, and the numbers exact.
    lanes : int
    key_planes, value_planes : int
        Planes of a key and of a value that a lane takes a cycle.
    um2 : float
        Area of the engine, memories aside (measured).
    lane_um2 : float
        Area of the blocks that hold lanes, per lane and query head (measured).
    cycles : int
        Cycles when every byte is there in time (derived).
    memory_cycles : int
        Cycles in which memory delivers the bytes; 0 where the comparison fixes no memory (derived).
    effective_cycles : int
        Cycles of the engine or of the memory, in each layer whichever takes longer (derived).
    bytes : int
        Bytes that are read (derived).
    """

    name: str
    code: str
    layers: int
    lanes: int
    key_planes: int
    value_planes: int
    um2: float
    lane_um2: float
    cycles: int
    memory_cycles: int
    effective_cycles: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the tag of each."""
        tags = {"um2": "measured", "lane_um2": "measured"}
        derived = ("cycles", "memory_cycles", "effective_cycles", "bytes")
        return asdict(self) | {"tags": tags | dict.fromkeys(derived, "derived")}


Measure = Callable[[EngineConfig], AreaReport]


def equal_lanes(
    candidates: Iterable[Candidate], lanes: int, tokens: int, measure: Measure
) -> list[Row]:
    """Every candidate with the same number of lanes, and one plane per cycle."""
    return [_row(candidate, candidate.engine(lanes), tokens, measure) for candidate in candidates]


def equal_speed(
    candidates: Iterable[Candidate], cycles: int, tokens: int, measure: Measure
) -> list[Row]:
    """Every candidate with the first of its `engines` that takes `cycles`, within the tolerance.

    One that does not get there is left out.

    Parameters
    ----------
    cycles : of the attention of one KV head; with a table, of the mean layer
    """
    rows = []
    for candidate in candidates:
        allowed = int(cycles * len(candidate.layers) * (1 + SPEED_TOLERANCE))
        config = smallest(candidate, tokens, allowed)
        if config is not None:
            rows.append(_row(candidate, config, tokens, measure))
    return rows


def equal_bandwidth(
    candidates: Iterable[Candidate], memory_bits: int, tokens: int, measure: Measure
) -> list[Row]:
    """Every candidate with the first of its `engines` that keeps up with a memory.

    It keeps up when all layers together take no longer than their bytes and what no lanes hide. In
    a layer of few digits the engine may well be slower than the memory.

    Parameters
    ----------
    memory_bits : bits that memory delivers each cycle, to this engine

    One that cannot keep up gets the first of its fastest engines, and its row says what that
    reaches.
    """
    rows = []
    for candidate in candidates:
        cycles = candidate.memory_cycles(memory_bits, tokens) + candidate.fixed_cycles(tokens)
        config = smallest(candidate, tokens, cycles, memory_bits)
        if config is None:  # the first of those that take the fewest
            config = min(
                candidate.engines(), key=lambda each: candidate.cycles(each, tokens, memory_bits)
            )
        rows.append(_row(candidate, config, tokens, measure, memory_bits))
    return rows


def smallest(
    candidate: Candidate, tokens: int, cycles: int, memory_bits: int | None = None
) -> EngineConfig | None:
    """The first of its `engines` that takes at most `cycles` for all layers; None if none does."""
    for config in candidate.engines():
        if candidate.cycles(config, tokens, memory_bits) <= cycles:
            return config
    return None


def _row(
    candidate: Candidate,
    config: EngineConfig,
    tokens: int,
    measure: Measure,
    memory_bits: int | None = None,
) -> Row:
    report = measure(config)
    in_lanes = sum(report.blocks[name].um2 for name in LANE_ROWS if name in report.blocks)
    layers = len(candidate.layers)

    def mean(total: int) -> int:
        return -(-total // layers)

    return Row(
        name=candidate.name,
        code=candidate.code,
        layers=layers,
        lanes=config.lanes,
        key_planes=config.key_planes_per_cycle,
        value_planes=config.value_planes_per_cycle,
        um2=report.total.um2,
        lane_um2=round(in_lanes / (config.lanes * config.query_group), 2),
        cycles=mean(candidate.cycles(config, tokens)),
        memory_cycles=mean(candidate.memory_cycles(memory_bits, tokens)) if memory_bits else 0,
        effective_cycles=mean(candidate.cycles(config, tokens, memory_bits)),
        bytes=mean(candidate.bytes(tokens)),
    )
