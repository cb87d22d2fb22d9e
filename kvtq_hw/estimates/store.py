"""The store of measured estimates, and the part of their keys that identifies the design.

The key of a result is everything that the result depends on, by content: the texts of netlist and
library, the commands and the version of the tool.
"""

from __future__ import annotations

from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.host.results import ResultStore
from kvtq_hw.host.sources import hardware_digest
from rtl.blocks import check_block
from rtl.verilog import generator_version

__all__ = ["design_key", "user_store"]


def user_store() -> ResultStore:
    """Return the store in the user's cache folder."""
    return ResultStore(cache_folder() / "estimates" / "results.sqlite")


def design_key(config: EngineConfig, block: str | None = None) -> dict[str, Any]:
    """Return everything that decides the Verilog of a block, or of the engine, except its name.

    Raises
    ------
    UserError
        For an unknown block.
    """
    if block is not None:
        check_block(block)
    return {
        "config": config.model_dump() | {"name": ""},
        "block": block,
        "sources": hardware_digest(block),
        "generator": generator_version(),
    }
