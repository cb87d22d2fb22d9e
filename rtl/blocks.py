# amaranth: UnusedElaboratable=no
# (a block is also created to look at its ports alone)
"""The blocks by name: what can be generated, simulated and counted on its own.

A block called ``select_add`` is the class ``SelectAdd`` of ``rtl/select_add.py``, constructed from
the configuration alone. Its Verilog module is called ``kvtq_select_add``.
"""

from __future__ import annotations

import importlib

from amaranth.lib import wiring

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from rtl.verilog import config_header, emit

__all__ = [
    "BLOCKS",
    "INTEGER_LANES",
    "TERNARY_LANES",
    "blocks_of",
    "check_block",
    "create_block",
    "emit_block",
    "module_name",
]

#: Lanes of ternary planes, and of the comparison engines.
TERNARY_LANES = ("select_add", "select_accumulate")
INTEGER_LANES = ("multiply_add", "multiply_accumulate")

#: All blocks. The engine composes those up to the sequencer, or the integers' lanes in place of the
#: ternary ones; the append path those of the write side.
BLOCKS = (
    "query_buffer",
    "select_add",
    "plane_scaler",
    "online_softmax",
    "weight_scaler",
    "select_accumulate",
    "normalizer",
    "sequencer",
    "multiply_add",
    "multiply_accumulate",
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
    "scheduler",
    "engine",
    "accelerator",
    "control",
)

_OF_ENGINE = BLOCKS.index(INTEGER_LANES[-1]) + 1


def check_block(name: str) -> None:
    """Raise `UserError` for a name that is not in `BLOCKS`."""
    if name not in BLOCKS:
        raise UserError(f"block: {name!r} is unknown; allowed are {', '.join(BLOCKS)}")


def blocks_of(config: EngineConfig) -> tuple[str, ...]:
    """The blocks that exist in a configuration: of integers the engine's alone."""
    lanes = TERNARY_LANES if config.integer_bits else INTEGER_LANES
    blocks = (*BLOCKS[:_OF_ENGINE], "engine") if config.integer_bits else BLOCKS
    return tuple(name for name in blocks if name not in lanes)


def create_block(name: str, config: EngineConfig) -> wiring.Component:
    """Construct a block.

    Raises
    ------
    UserError
        For a name that is not in `BLOCKS`, and for lanes of another cache format.
    """
    check_block(name)
    if name not in blocks_of(config):
        raise UserError(f"block: {name!r} does not exist in cache_format {config.cache_format!r}")
    block = getattr(importlib.import_module(f"rtl.{name}"), name.title().replace("_", ""))
    return block(config)


def emit_block(name: str, config: EngineConfig, *, all_names: bool = False) -> str:
    """Verilog of a block under its `module_name`, with a header that names the configuration.

    `all_names` is that of `rtl.verilog.emit`.
    """
    top = module_name(name)
    header = config_header(top, config)
    return emit(create_block(name, config), top, header, all_names=all_names)


def module_name(name: str) -> str:
    """Name of a block's Verilog module."""
    return f"kvtq_{name}"
