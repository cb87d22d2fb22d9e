"""Names of the rows of lane blocks in results; a name says how the lanes multiply.

A block has the same name in all cache formats, but one table may hold lanes of several formats.
"""

from __future__ import annotations

from kvtq_hw.contract.config import EngineConfig

__all__ = ["LANE_ROWS", "row_of"]

#: Row names per block with lanes: for lanes of trits, for lanes of integers.
_ROWS = {
    "key_lanes": ("select_add", "multiply_add"),
    "value_lanes": ("select_accumulate", "multiply_accumulate"),
}

#: Row names of all blocks with lanes, in all cache formats.
LANE_ROWS = tuple(row for rows in _ROWS.values() for row in rows)


def row_of(block: str, config: EngineConfig) -> str:
    """Return the row name of a block; for a block without lanes, the block's own name."""
    trits, integers = _ROWS.get(block, (block, block))
    return trits if config.is_ternary else integers
