"""An engine's netlist, taken apart into its blocks.

Each block becomes a design of its own, with its inner modules; the engine's own logic becomes one
whose blocks are black boxes. Together they are the whole engine, each part once.
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
    """One block as RTLIL.

    Parameters
    ----------
    block : str
        The block of `rtl.blocks.BLOCKS` that it belongs to.
    top : str
        Its module.
    instances : int
        How often the engine holds it.
    text : str
        The module and all inside it. In the engine's own part blocks are black boxes.
    """

    block: str
    top: str
    instances: int
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text, whatever the module is called."""
        neutral = self.text.replace(self.top, "top")
        return hashlib.sha256(neutral.encode()).hexdigest()


def engine_parts(config: EngineConfig, block: str | None = None) -> list[Part]:
    """The parts of an engine, or of one block.

    A block that the engine holds is taken out of it; one that stands alone is generated alone.

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
    """Take RTLIL text apart: a part for each module directly inside `top`, and one for the rest.

    Raises
    ------
    ValueError
        When a module belongs to no block: nothing goes uncounted.
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
    """Texts of a module and of every module inside it, each once."""
    seen: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen[name] = modules[name]
            waiting += [child for child in _CELL.findall(modules[name]) if child in modules]
    return list(seen.values())


def _black_box(text: str) -> str:
    """A module's ports without what is inside."""
    name = _MODULE.match(text)
    if name is None:
        raise ValueError("no module in the text")
    ports = "".join(_PORT.findall(text))
    return f"attribute \\blackbox 1\nmodule \\{name[1]}\n{ports}end\n"
