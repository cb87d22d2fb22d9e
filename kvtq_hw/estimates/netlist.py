"""Counts the multipliers in the generated Verilog, by block, after coarse synthesis."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.files import scratch_folder
from rtl.blocks import BLOCKS
from rtl.yosys import run_yosys

__all__ = ["MULTIPLIER_CELLS", "block_of", "count_multipliers", "expected_multipliers"]

#: Yosys cells that multiply or divide. `opt` turns products by a power of two into shifts.
MULTIPLIER_CELLS = frozenset(
    {"$mul", "$macc", "$macc_v2", "$pow", "$div", "$mod", "$divfloor", "$modfloor"}
)

# Coarse synthesis up to, not including, `alumacc`, which turns sums of many operands without any
# product into $macc cells. The hierarchy stays, so that cells are counted by block.
_SYNTHESIS = (
    "proc",
    "opt_expr",
    "opt_clean",
    "check -assert",
    "opt -nodffe -nosdff",
    "fsm",
    "opt",
    "wreduce",
    "peepopt",
    "opt_clean",
)


def count_multipliers(verilog: str, top: str) -> dict[str, int]:
    """Count the multiplier cells of each block of an engine, from its Verilog.

    Parameters
    ----------
    verilog : str
        Text from `rtl.verilog.emit`.
    top : str
        Name of the engine's module; cells outside its blocks are counted under "engine".

    Raises
    ------
    ValueError
        When a module belongs to no block, and its cells would go uncounted.
    rtl.yosys.YosysError
        When the text is no valid design, or has a problem such as a combinational loop.
    """
    with scratch_folder() as directory:
        (directory / "design.v").write_text(verilog, encoding="utf-8")
        run_yosys(
            [
                "read_verilog -sv design.v",
                f"hierarchy -check -top {top}",
                *_SYNTHESIS,
                "tee -q -o cells.json stat -json",
            ],
            directory,
        )
        modules = json.loads((directory / "cells.json").read_text("utf-8"))["modules"]
    cells = {
        name.removeprefix("\\"): Counter[str](statistics["num_cells_by_type"])
        for name, statistics in modules.items()
    }
    counts: Counter[str] = Counter(dict.fromkeys(BLOCKS, 0))
    for kind, number in cells[top].items():
        if kind in cells:
            counts[block_of(kind, top)] += number * _multipliers(cells, kind)
        elif kind in MULTIPLIER_CELLS:
            counts["engine"] += number
    return dict(counts)


def _multipliers(cells: Mapping[str, Counter[str]], module: str) -> int:
    """Count the multipliers of a module with everything in it: a module may have many instances."""
    return sum(
        number * (_multipliers(cells, kind) if kind in cells else kind in MULTIPLIER_CELLS)
        for kind, number in cells[module].items()
    )


def expected_multipliers(config: EngineConfig) -> dict[str, int]:
    """Return the multipliers per block that the design promises.

    Only the two scalers and the normalizer multiply: the scalers with one multiplier per query
    head, the normalizer with one for as many heads as have turns, in two halves that count apart.
    With power-of-two scales the scalers shift, and the path of a token holds no multiplier. The
    comparison engines have one more multiplier per lane of each head.
    """
    lanes = 0 if config.is_ternary else config.query_group * config.lanes
    scalers = config.query_group if config.scale_fraction_bits else 0
    return dict.fromkeys(BLOCKS, 0) | {
        "plane_scaler": scalers,
        "weight_scaler": scalers,
        "normalizer": 2 * -(-config.query_group // config.normalizer_turns),
        "key_lanes": lanes,
        "value_lanes": lanes,
    }


def block_of(module: str, top: str) -> str:
    """Return the block of a module: the engine's submodule that is or contains the module."""
    if module == top:
        return "engine"
    for block in BLOCKS:
        prefix = f"{top}_{block}"
        if module == prefix or module.startswith(f"{prefix}_"):
            return block
    raise ValueError(f"module {module!r} belongs to none of the blocks {', '.join(BLOCKS)}")
