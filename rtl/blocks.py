# amaranth: UnusedElaboratable=no
# (a block is also created to look at its ports alone)
"""The blocks by name: components that can be generated, simulated and counted on their own.

A block called ``key_lanes`` is the class ``KeyLanes`` of ``rtl/key_lanes.py``, constructed from the
configuration alone. Its Verilog module is called ``kvtq_key_lanes``.
"""

from __future__ import annotations

import importlib

from amaranth.lib import wiring

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from rtl.verilog import config_header, emit

__all__ = [
    "BLOCKS",
    "blocks_of",
    "check_block",
    "create_block",
    "emit_block",
    "module_name",
]

#: Blocks that the engine is composed of.
_OF_ENGINE = (
    "query_buffer",
    "key_lanes",
    "plane_scaler",
    "online_softmax",
    "weight_scaler",
    "value_lanes",
    "normalizer",
    "sequencer",
)

#: All blocks. The append path is composed of the blocks of the write side.
BLOCKS = (
    *_OF_ENGINE,
    "hadamard",
    "query_conditioner",
    "output_rotator",
    "quantizer",
    "dequantizer",
    "packer",
    "record_packer",
    "tables",
    "append_path",
    "unpacker",
    "record_unpacker",
    "record_reader",
    "record_writer",
    "value_exponents",
    "anchors",
    "scheduler",
    "engine",
    "accelerator",
    "control",
)


def check_block(name: str) -> None:
    """Raise `UserError` for a name that is not in `BLOCKS`."""
    if name not in BLOCKS:
        raise UserError(f"block: {name!r} is unknown; allowed are {', '.join(BLOCKS)}")


def blocks_of(config: EngineConfig) -> tuple[str, ...]:
    """Return the blocks of a configuration: for integers only the engine and its blocks."""
    if not config.is_ternary:
        return (*_OF_ENGINE, "engine")
    return tuple(name for name in BLOCKS if name != "anchors" or config.anchor_slots)


def create_block(name: str, config: EngineConfig) -> wiring.Component:
    """Construct a block.

    Raises
    ------
    UserError
        For a name that is not in `BLOCKS`, and for a block that the configuration does not have.
    """
    check_block(name)
    if name not in blocks_of(config):
        reason = "with anchor_slots 0"
        if not config.is_ternary:
            reason = f"in cache_format {config.cache_format!r}"
        raise UserError(f"block: {name!r} does not exist {reason}")
    block = getattr(importlib.import_module(f"rtl.{name}"), name.title().replace("_", ""))
    return block(config)


def emit_block(name: str, config: EngineConfig, *, all_names: bool = False) -> str:
    """Return a block's Verilog, named `module_name`, with a header that names the configuration.

    `all_names` is the parameter of `rtl.verilog.emit`.
    """
    top = module_name(name)
    header = config_header(top, config)
    return emit(create_block(name, config), top, header, all_names=all_names)


def module_name(name: str) -> str:
    """Return the name of a block's Verilog module."""
    return f"kvtq_{name}"
