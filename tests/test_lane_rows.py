"""Names of the lanes' rows in results."""

from __future__ import annotations

from bench_matrix import INTEGER_CONFIGS, TINY

from kvtq_hw.estimates.lane_rows import LANE_ROWS, row_of
from rtl.blocks import blocks_of


def test_rows_of_lanes_say_how_they_multiply() -> None:
    lanes = ("key_lanes", "value_lanes")
    assert [row_of(block, TINY) for block in lanes] == ["select_add", "select_accumulate"]
    for config in INTEGER_CONFIGS.values():
        rows = [row_of(block, config) for block in lanes]
        assert rows == ["multiply_add", "multiply_accumulate"]


def test_other_rows_are_called_as_their_blocks() -> None:
    for config in (TINY, *INTEGER_CONFIGS.values()):
        rows = {block: row_of(block, config) for block in blocks_of(config)}
        others = {block: row for block, row in rows.items() if row != block}
        assert set(others) == {"key_lanes", "value_lanes"}
        assert set(others.values()) < set(LANE_ROWS)
