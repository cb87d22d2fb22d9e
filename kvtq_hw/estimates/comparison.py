"""Engines side by side, three ways: at equal lanes, equal tokens a second, equal memory bandwidth.

A ternary lane takes a cycle for each plane where an integer lane takes one for the whole element,
and reads fewer bits. So lanes alone do not compare: each way fixes one thing and lets the number of
lanes, a divisor of the head dimension, and the planes that a lane takes a cycle follow from it.

Areas are measured on netlists. Cycles are derived from the cycle model, which equals the RTL's own
counter, bytes from the layout of stored vectors. One clock for all engines.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtq_hw.codes import CacheCode
from kvtq_hw.config import EngineConfig
from kvtq_hw.cycle_model import job_cycles, token_slices
from kvtq_hw.errors import UserError
from kvtq_hw.estimates.area import AreaReport
from kvtq_hw.packing import scale_bytes, vector_bytes

__all__ = [
    "Candidate",
    "Row",
    "equal_bandwidth",
    "equal_lanes",
    "equal_speed",
    "integer",
    "integers",
    "quality_of",
    "smallest",
    "ternary",
]

#: Share of the reference's cycles that an engine of equal speed may take more: sinks and window are
#: in more digits than the planes of one cycle, and no number of lanes hides them.
SPEED_TOLERANCE = 0.05

#: Blocks that hold lanes: their area divided by lanes and heads is the area of a lane.
LANE_BLOCKS = ("select_add", "select_accumulate", "multiply_add", "multiply_accumulate")


@dataclass(frozen=True)
class Candidate:
    """A cache format and the engine for it.

    Parameters
    ----------
    name : str
        Its name in tables, for example "ternary K3/V2".
    config : EngineConfig
        The engine; its lanes are a starting point.
    code : str
        The cache code or baseline whose quality it stands for, as `kvtq-hw eval` spells it.
    digits : tuple
        Planes of a key and of a value in the body.
    key_planes, value_planes : Callable
        Planes of each of T tokens, from T. An integer format has one a token.
    key_runs, value_runs : int
        Runs that a body vector's planes are in; a tier's are in one.
    key_bytes, value_bytes : Callable
        Stored bytes of all of T tokens' keys or values of one KV head.
    """

    name: str
    config: EngineConfig
    code: str
    digits: tuple[int, int]
    key_planes: Callable[[int], Sequence[int]]
    value_planes: Callable[[int], Sequence[int]]
    key_bytes: Callable[[int], int]
    value_bytes: Callable[[int], int]
    key_runs: int = 1
    value_runs: int = 1

    def engine(self, lanes: int, key_planes: int = 1, value_planes: int = 1) -> EngineConfig:
        """Its configuration with so many lanes, and planes a cycle."""
        fields = {
            "lanes": lanes,
            "key_planes_per_cycle": key_planes,
            "value_planes_per_cycle": value_planes,
        }
        return EngineConfig.model_validate(self.config.model_dump() | fields)

    def engines(self) -> list[EngineConfig]:
        """What its head dimension and planes allow: fewest lanes first, then fewest planes a cycle.

        Lanes come first: each has the adder of an accumulator, which all planes of a cycle share.
        Of as many planes those have the fewest of values.
        """
        dim, most = self.config.head_dim, self.config.max_planes
        planes = itertools.product(range(1, most + 1), repeat=2)
        by_cost = sorted(planes, key=lambda pair: (sum(pair), pair[1]))
        lanes = [number for number in range(2, dim + 1) if dim % number == 0]
        return [self.engine(number, *pair) for number in lanes for pair in by_cost]

    def cycles(self, config: EngineConfig, tokens: int) -> int:
        """Cycles of the attention of one KV head over `tokens` tokens."""
        return job_cycles(config, *self.slices(config, tokens))

    def slices(self, config: EngineConfig, tokens: int) -> tuple[list[int], list[int]]:
        """Slices of each block of keys and of values."""

        def of(planes: Sequence[int], digits: int, runs: int, together: int) -> list[int]:
            slices = [
                config.slices * token_slices(together, n, runs if n == digits else 1)
                for n in planes
            ]
            return [
                sum(slices[start : start + config.block])
                for start in range(0, len(slices), config.block)
            ]

        keys, values = self.digits
        return (
            of(self.key_planes(tokens), keys, self.key_runs, config.key_planes_per_cycle),
            of(self.value_planes(tokens), values, self.value_runs, config.value_planes_per_cycle),
        )

    def bytes(self, tokens: int) -> int:
        """Bytes that this attention reads."""
        return self.key_bytes(tokens) + self.value_bytes(tokens)


def ternary(config: EngineConfig, code: CacheCode) -> Candidate:
    """The candidate of a ternary cache code: tiers and scales included in planes and bytes."""

    def planes(digits: int) -> Callable[[int], list[int]]:
        def of(tokens: int) -> list[int]:
            sinks = min(tokens, code.sinks)
            window = min(tokens - sinks, code.window)
            tier = min(code.tier, config.max_planes)
            return [tier] * sinks + [digits] * (tokens - sinks - window) + [tier] * window

        return of

    def stored(digits: int) -> Callable[[int], int]:
        def of(tokens: int) -> int:
            counts = planes(digits)(tokens)
            body = len(counts) - min(tokens, code.sinks + code.window)
            tier = min(code.tier, config.max_planes)
            return body * vector_bytes(config, digits, code.scales(digits)) + (
                len(counts) - body
            ) * vector_bytes(config, tier, 1)

        return of

    return Candidate(
        name=f"ternary K{code.key_digits}/V{code.value_digits}",
        config=config,
        code=str(code),
        digits=(code.key_digits, code.value_digits),
        key_planes=planes(code.key_digits),
        value_planes=planes(code.value_digits),
        key_bytes=stored(code.key_digits),
        value_bytes=stored(code.value_digits),
        key_runs=code.scales(code.key_digits),
        value_runs=code.scales(code.value_digits),
    )


def integer(config: EngineConfig, name: str, code: str, bits: int, scale_bytes: int) -> Candidate:
    """The candidate of an integer format: one "plane" a token, `bits` an element and a scale."""

    def planes(tokens: int) -> list[int]:
        return [1] * tokens

    def stored(tokens: int) -> int:
        return tokens * (-(-config.head_dim * bits // 8) + scale_bytes)

    return Candidate(name, config, code, (1, 1), planes, planes, stored, stored)


def integers(config: EngineConfig) -> list[Candidate]:
    """The candidates with multipliers: INT8 and INT4, against queries of 8 bits.

    Their quality is that of plain integers, one scale a vector: no rotation, no feedback.
    """
    one = {"max_planes": 1, "key_planes_per_cycle": 1, "value_planes_per_cycle": 1}
    fields = config.model_dump() | one | {"query_bits": 8}
    return [
        integer(
            EngineConfig.model_validate(fields | {"cache_format": name}),
            name.upper(),
            name,
            bits,
            scale_bytes(config),
        )
        for name, bits in (("int8", 8), ("int4", 4))
    ]


@dataclass(frozen=True)
class Row:
    """One engine in a comparison.

    Parameters
    ----------
    name, code : str
        As in `Candidate`.
    lanes : int
    key_planes, value_planes : int
        Planes of a key and of a value that a lane takes a cycle.
    um2 : float
        Area of the engine, memories aside (measured).
    lane_um2 : float
        Area of the blocks that hold lanes, by lane and query head (measured).
    cycles : int
        Cycles of one KV head's attention when every byte is there in time (derived).
    memory_cycles : int
        Cycles in which memory delivers its bytes; 0 where the comparison fixes no memory (derived).
    bytes : int
        Bytes that it reads (derived).
    """

    name: str
    code: str
    lanes: int
    key_planes: int
    value_planes: int
    um2: float
    lane_um2: float
    cycles: int
    memory_cycles: int
    bytes: int

    @property
    def effective_cycles(self) -> int:
        """Cycles of one attention: of the engine or of the memory, whichever takes longer."""
        return max(self.cycles, self.memory_cycles)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the tag of each."""
        tags = {"um2": "measured", "lane_um2": "measured"}
        derived = ("cycles", "memory_cycles", "bytes", "effective_cycles")
        return asdict(self) | {
            "effective_cycles": self.effective_cycles,
            "tags": tags | dict.fromkeys(derived, "derived"),
        }


Measure = Callable[[EngineConfig], AreaReport]


def equal_lanes(
    candidates: Iterable[Candidate], lanes: int, tokens: int, measure: Measure
) -> list[Row]:
    """Every candidate with the same number of lanes, and one plane a cycle."""
    return [_row(candidate, candidate.engine(lanes), tokens, measure) for candidate in candidates]


def equal_speed(
    candidates: Iterable[Candidate], cycles: int, tokens: int, measure: Measure
) -> list[Row]:
    """Every candidate with the first of its `engines` that takes `cycles`, within the tolerance.

    One that does not get there is left out.
    """
    rows = []
    for candidate in candidates:
        config = smallest(candidate, tokens, int(cycles * (1 + SPEED_TOLERANCE)))
        if config is not None:
            rows.append(_row(candidate, config, tokens, measure))
    return rows


def equal_bandwidth(
    candidates: Iterable[Candidate], memory_bits: int, tokens: int, measure: Measure
) -> list[Row]:
    """Every candidate with the first of its `engines` that keeps up with a memory.

    Parameters
    ----------
    memory_bits : bits that memory delivers each cycle, to this engine

    One that cannot keep up gets its fastest engine, and its row says what that reaches.
    """
    rows = []
    for candidate in candidates:
        needed = -(-candidate.bytes(tokens) * 8 // memory_bits)
        # what is not streaming (queries in, outputs out) is not hidden by any number of lanes
        idle = _cycles_without_slices(candidate, tokens)
        config = smallest(candidate, tokens, needed + idle)
        rows.append(_row(candidate, config or candidate.engines()[-1], tokens, measure, needed))
    return rows


def smallest(candidate: Candidate, tokens: int, cycles: int) -> EngineConfig | None:
    """The first of its `engines` with which an attention takes at most `cycles`; None if none."""
    for config in candidate.engines():
        if candidate.cycles(config, tokens) <= cycles:
            return config
    return None


def _cycles_without_slices(candidate: Candidate, tokens: int) -> int:
    config = candidate.engines()[-1]
    keys, values = candidate.slices(config, tokens)
    return candidate.cycles(config, tokens) - sum(keys) - sum(values)


def _row(
    candidate: Candidate,
    config: EngineConfig,
    tokens: int,
    measure: Measure,
    memory_cycles: int = 0,
) -> Row:
    report = measure(config)
    in_lanes = sum(report.blocks[name].um2 for name in LANE_BLOCKS if name in report.blocks)
    return Row(
        name=candidate.name,
        code=candidate.code,
        lanes=config.lanes,
        key_planes=config.key_planes_per_cycle,
        value_planes=config.value_planes_per_cycle,
        um2=report.total.um2,
        lane_um2=round(in_lanes / (config.lanes * config.query_group), 2),
        cycles=candidate.cycles(config, tokens),
        memory_cycles=memory_cycles,
        bytes=candidate.bytes(tokens),
    )


def quality_of(code: str, files: Iterable[Path]) -> dict[str, Any] | None:
    """What `kvtq-hw eval` measured of a code, from its result files; None where it is in none.

    Returns
    -------
    dict with perplexity_ratio (to the unquantized model), bits_per_element, file and tag

    Raises
    ------
    UserError
        A file is no result of `kvtq-hw eval`.
    """
    for file in files:
        try:
            rows = json.loads(file.read_text("utf-8"))["rows"]
            for row in rows:
                if row["code"] == code:
                    return {
                        "tag": "measured",
                        "file": file.name,
                        "perplexity_ratio": row["perplexity_ratio"],
                        "bits_per_element": row["bits_per_element"],
                    }
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--quality: {str(file)!r} is no result of kvtq-hw eval") from None
    return None
