# amaranth: UnusedElaboratable=no
# (a block is also created to look at its ports alone)
"""The blocks by name: components that can be generated, simulated and counted on their own.

A block called ``key_lanes`` is the class ``KeyLanes`` of ``rtl/key_lanes.py``, constructed from the
configuration alone. Its Verilog module is called ``kvtq_key_lanes``, or has another prefix.
"""

from __future__ import annotations

import gc
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from amaranth.lib import wiring

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError, shown
from rtl.reset import Reset
from rtl.verilog import config_header, emit

__all__ = [
    "BLOCKS",
    "PREFIX",
    "blocks_of",
    "check_block",
    "create_block",
    "emit_block",
    "module_name",
    "prefix_of",
]

#: Prefix of module names inside this project, where a design holds one configuration.
PREFIX = "kvtq"

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


def emit_block(
    name: str,
    config: EngineConfig,
    prefix: str = PREFIX,
    *,
    all_names: bool = False,
    reset: Reset = Reset.SYNC_HIGH,
    initial_values: bool = True,
) -> str:
    """Return a block's Verilog, named `module_name`, with a header that names the configuration.

    `all_names`, `reset` and `initial_values` are the parameters of `rtl.verilog.emit`.

    Raises
    ------
    UserError
        For a block that there is not, and for a prefix that begins no name in Verilog.
    """
    top = module_name(name, prefix)
    start = "its value also as" if initial_values else "no"
    header = (
        f"{config_header(top, config)}\nRegisters that have a reset have {start} initial value."
    )
    with _without_collection():
        return emit(
            create_block(name, config),
            top,
            header,
            all_names=all_names,
            reset=reset,
            initial_values=initial_values,
        )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Leave cyclic garbage to the end: Amaranth makes millions of objects, and keeps them.

    Python's collector would look through all of them again and again, for half of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect()


def module_name(name: str, prefix: str = PREFIX) -> str:
    """Return the name of a block's Verilog module."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", prefix):
        raise UserError(
            f"prefix: {shown(prefix)} is not allowed; must be letters, digits and _, "
            "and begin with a letter or _"
        )
    return f"{prefix}_{name}"


def prefix_of(config: EngineConfig) -> str:
    """Return the prefix with which two configurations live in one design: ``kvtq_<name>``."""
    return f"{PREFIX}_{config.name.replace('-', '_')}"
