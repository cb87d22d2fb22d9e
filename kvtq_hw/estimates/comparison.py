"""Comparison of engines at equal lanes, equal tokens per second or equal memory bandwidth.

A ternary lane takes one cycle per plane and reads few bits; an integer lane takes one cycle per
element and reads more bits. So the number of lanes alone is no fair comparison. Each comparison
fixes one quantity and derives the lanes (a divisor of the head dimension) and planes per cycle.

Areas are measured on netlists; cycles and bytes are derived. All engines have the same clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.estimates.area import AreaReport
from kvtq_hw.estimates.candidates import Candidate
from kvtq_hw.estimates.lane_rows import LANE_ROWS

__all__ = [
    "NearMiss",
    "Row",
    "equal_bandwidth",
    "equal_lanes",
    "equal_speed",
    "smallest",
]

#: Extra cycles allowed to an engine of equal speed, as a share of the reference's cycles: sinks and
#: window have more digits than planes per cycle, and no number of lanes hides their extra slices.
SPEED_TOLERANCE = 0.05

#: An engine that takes more cycles than allowed, by at most this share of them, misses narrowly.
NARROW = 0.01


@dataclass(frozen=True)
class NearMiss:
    """A smaller engine that narrowly fails to keep up with a memory: a size that hangs on little.

    Parameters
    ----------
    lanes, key_planes, value_planes, um2
        As in `Row`.
    cycles : int
        As `effective_cycles` in `Row`.
    allowed : int
        Most cycles with which the engine would keep up (derived).
    """

    lanes: int
    key_planes: int
    value_planes: int
    um2: float | None
    cycles: int
    allowed: int


@dataclass(frozen=True)
class Row:
    """One engine in a comparison.

    Cycles and bytes are per KV head and layer: the mean over layers, rounded up.

    Parameters
    ----------
    name, code : str
        As in `Candidate`.
    layers : int
        Number of layers in the mean; 1 if all layers are alike, and the numbers are then exact.
    lanes : int
    key_planes, value_planes : int
        Planes of a key and of a value per cycle and lane.
    um2 : float or None
        Area of the engine without memories, square micrometres (measured).
    lane_um2 : float or None
        Area of the blocks with lanes, per lane and query head (measured).
    blocks : dict of float
        Area of each block, square micrometres, by its `row_of` (measured). Without areas the dict
        is empty, and `um2` and `lane_um2` are None.
    cycles : int
        Cycles if memory never delays the engine (derived).
    memory_cycles : int
        Cycles in which memory delivers the bytes; 0 where the comparison fixes no memory (derived).
    effective_cycles : int
        Per layer the larger of the engine's and the memory's cycles (derived).
    bytes : int
        Bytes read (derived).
    missed : NearMiss or None
        The first smaller engine that misses the condition of equal bandwidth narrowly, if any.
    """

    name: str
    code: str
    layers: int
    lanes: int
    key_planes: int
    value_planes: int
    um2: float | None
    lane_um2: float | None
    blocks: dict[str, float]
    cycles: int
    memory_cycles: int
    effective_cycles: int
    bytes: int
    missed: NearMiss | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the tag (measured or derived) of each number."""
        measured = ("um2", "lane_um2", "blocks")
        derived = ("cycles", "memory_cycles", "effective_cycles", "bytes")
        tags = dict.fromkeys(measured, "measured") | dict.fromkeys(derived, "derived")
        return asdict(self) | {"tags": tags}


Measure = Callable[[EngineConfig], AreaReport | None]
"""Measures an engine's area; None where areas are left out."""


def equal_lanes(
    candidates: Iterable[Candidate], lanes: int, tokens: int, measure: Measure
) -> list[Row]:
    """Compare all candidates with the same number of lanes and one plane per cycle."""
    return [_row(candidate, candidate.engine(lanes), tokens, measure) for candidate in candidates]


def equal_speed(
    candidates: Iterable[Candidate], cycles: int, tokens: int, measure: Measure
) -> list[Row]:
    """Compare each candidate's first of `engines` that takes at most `cycles`, plus the tolerance.

    A candidate without such an engine is left out.

    Parameters
    ----------
    cycles : cycles of attention per KV head and layer; for a code table, of the mean layer
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
    """Compare each candidate's first of `engines` that keeps up with a memory.

    An engine keeps up if all layers together take at most `memory_cycles` plus `fixed_cycles`. In
    a single layer of few digits the engine may still be slower than the memory. A candidate that
    cannot keep up is represented by the first of its fastest engines. A smaller engine that
    narrowly fails to keep up is named beside the row.

    Parameters
    ----------
    memory_bits : bits that memory delivers to the engine per cycle
    """
    rows = []
    for candidate in candidates:
        cycles = candidate.memory_cycles(memory_bits, tokens) + candidate.fixed_cycles(tokens)
        config = smallest(candidate, tokens, cycles, memory_bits)
        if config is None:  # the first of the engines with the fewest cycles
            config = min(
                candidate.engines(), key=lambda each: candidate.cycles(each, tokens, memory_bits)
            )
        row = _row(candidate, config, tokens, measure, memory_bits)
        smaller = smallest(candidate, tokens, int(cycles * (1 + NARROW)), memory_bits)
        if smaller is not None and smaller != config:
            near = _row(candidate, smaller, tokens, measure, memory_bits)
            allowed = cycles // len(candidate.layers)
            row = replace(row, missed=_near_miss(near, allowed))
        rows.append(row)
    return rows


def _near_miss(row: Row, allowed: int) -> NearMiss:
    planes = row.key_planes, row.value_planes
    return NearMiss(row.lanes, *planes, row.um2, row.effective_cycles, allowed)


def smallest(
    candidate: Candidate, tokens: int, cycles: int, memory_bits: int | None = None
) -> EngineConfig | None:
    """Return the candidate's first engine with at most `cycles` over all layers, None if none."""
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
    blocks = {} if report is None else {name: each.um2 for name, each in report.blocks.items()}
    in_lanes = sum(um2 for name, um2 in blocks.items() if name in LANE_ROWS)
    of_a_lane = round(in_lanes / (config.lanes * config.query_group), 2)
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
        um2=None if report is None else report.total.um2,
        lane_um2=None if report is None else of_a_lane,
        blocks={name: round(um2, 3) for name, um2 in blocks.items()},
        cycles=mean(candidate.cycles(config, tokens)),
        memory_cycles=mean(candidate.memory_cycles(memory_bits, tokens)) if memory_bits else 0,
        effective_cycles=mean(candidate.cycles(config, tokens, memory_bits)),
        bytes=mean(candidate.bytes(tokens)),
    )
