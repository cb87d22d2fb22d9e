"""Names of the lanes' rows in results: they say how lanes multiply, so that formats compare.

The blocks have one name in all cache formats; a table may hold the lanes of several.
"""

from __future__ import annotations

from kvtq_hw.contract.config import EngineConfig

__all__ = ["LANE_ROWS", "row_of"]

#: Rows of each block with lanes: lanes of trits, lanes of integers.
_ROWS = {
    "key_lanes": ("select_add", "multiply_add"),
    "value_lanes": ("select_accumulate", "multiply_accumulate"),
}

#: Rows of lanes, of all cache formats.
LANE_ROWS = tuple(row for rows in _ROWS.values() for row in rows)


def row_of(block: str, config: EngineConfig) -> str:
    """Return the name of a block's row; that of the block itself where it has no lanes."""
    trits, integers = _ROWS.get(block, (block, block))
    return trits if config.is_ternary else integers
