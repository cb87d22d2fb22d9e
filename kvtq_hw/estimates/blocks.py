"""Splits an engine's netlist into its blocks.

Each block becomes a separate design with its inner modules. The engine's own logic becomes a design
in which the blocks are black boxes. Together these parts are the whole engine, each part once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.netlist import block_of
from rtl.blocks import BLOCKS, check_block, create_block, module_name
from rtl.verilog import emit_rtlil

__all__ = ["Part", "engine_parts", "split"]

_MODULE = re.compile(r"^(?:attribute [^\n]*\n)*module \\(\S+)\n.*?^end\n", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"^  cell \\(\S+) ", re.MULTILINE)
_PORT = re.compile(r"^  wire [^\n]*\b(?:input|output|inout) \d+ [^\n]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """One part of an engine as RTLIL.

    Parameters
    ----------
    block : str
        The part's block, a name in `rtl.blocks.BLOCKS`.
    top : str
        Name of the part's top module.
    instances : int
        Number of instances in the engine.
    text : str
        The module and everything inside it. In the engine's own part, blocks are black boxes.
    """

    block: str
    top: str
    instances: int
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text; independent of the module's name."""
        neutral = self.text.replace(self.top, "top")
        return hashlib.sha256(neutral.encode()).hexdigest()


def engine_parts(config: EngineConfig, block: str | None = None) -> list[Part]:
    """Return the parts of an engine, or of one block.

    A block inside the engine is taken from the engine's netlist; any other block is generated
    alone.

    Raises
    ------
    UserError
        For a block that is not in `rtl.blocks.BLOCKS`.
    """
    if block is not None:
        check_block(block)
    top = module_name("engine")
    parts = split(emit_rtlil(create_block("engine", config), top), top)
    if block is None:
        return parts
    if chosen := [part for part in parts if part.block == block]:
        return chosen
    top = module_name(block)
    return [Part(block, top, 1, emit_rtlil(create_block(block, config), top))]


def split(rtlil: str, top: str) -> list[Part]:
    """Split RTLIL text: one part per module directly inside `top`, and one part for the rest.

    Raises
    ------
    ValueError
        When a module belongs to no block, and would go uncounted.
    UserError
        When the design has no module `top`.
    """
    modules = {match[1]: match[0] for match in _MODULE.finditer(rtlil)}
    if top not in modules:
        raise UserError(f"netlist: no module {top!r}; there are {', '.join(modules) or 'none'}")
    children: dict[str, int] = {}
    for child in _CELL.findall(modules[top]):
        if child in modules:
            children[child] = children.get(child, 0) + 1
    order = {block: position for position, block in enumerate(BLOCKS)}
    parts = [
        Part(block_of(child, top), child, count, "".join(_with_inner(child, modules)))
        for child, count in children.items()
    ]
    boxes = [_black_box(modules[child]) for child in children]
    parts.append(Part("engine", top, 1, modules[top] + "".join(boxes)))
    return sorted(parts, key=lambda part: order[part.block])


def _with_inner(module: str, modules: dict[str, str]) -> list[str]:
    """Return the texts of a module and of every module inside it, each once."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen[name] = modules[name]
            waiting += [child for child in _CELL.findall(modules[name]) if child in modules]
    return list(seen.values())


def _black_box(text: str) -> str:
    """Return the text of a module with its ports, but without its content."""
    name = _MODULE.match(text)
    if name is None:
        raise ValueError("no module in the text")
    ports = "".join(_PORT.findall(text))
    return f"attribute \\blackbox 1\nmodule \\{name[1]}\n{ports}end\n"
