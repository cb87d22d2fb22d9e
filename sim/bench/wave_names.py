"""Readable waves: names of states and operations as text, and a view for GTKWave.

Verilog signals carry numbers. Each state register and each enumerated signal gets a wire of ASCII
text with the name of its value, which every viewer and every simulator shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amaranth.hdl import Fragment
from amaranth.lib import wiring
from vcd.gtkw import GTKWSave

from kvtq_hw.contract.files import whole
from rtl.verilog import emit_rtlil, port_members

__all__ = ["TEXT_SUFFIX", "save_view", "value_names", "with_text"]

#: Suffix of the wire with the name of a signal's value: ``signal_text`` for `signal`.
TEXT_SUFFIX = "_text"

_MODULE = re.compile(r"^module (\S+?)\(.*?^endmodule$", re.MULTILINE | re.DOTALL)
_RTLIL_MODULE = re.compile(r"^module \\(\S+)\n(.*?)^end$", re.MULTILINE | re.DOTALL)
_ENUM = re.compile(r"((?:  attribute [^\n]*\n)+)  wire width (\d+) [^\n]*\\(\w+)\n")
_VALUE = re.compile(r'attribute \\enum_value_([01]+) "(\w+)"')

Names = Mapping[str, Mapping[str, Mapping[int, str]]]


def value_names(component: wiring.Component, top: str) -> Names:
    """Return the names of values, by module and signal, of state machines and enumerations."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    for module, text in _RTLIL_MODULE.findall(emit_rtlil(component, top)):
        for attributes, _, signal in _ENUM.findall(text):
            if values := _VALUE.findall(attributes):
                names = {int(bits, 2): name for bits, name in values}
                found.setdefault(module, {})[signal] = names
    for path, machine in _machines(Fragment.get(component, None), (top,)):
        names = {number: name for name, number in machine.encoding.items()}
        found.setdefault("_".join(path), {})[machine.state.name] = names
    return found


def _machines(fragment: Fragment, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield path and state machine of a fragment and of its subfragments."""
    for made in fragment.generated.values():
        if hasattr(made, "encoding") and hasattr(made, "state"):
            yield path, made
    for inner, name, *_ in fragment.subfragments:
        if name is not None:
            yield from _machines(inner, (*path, name))


def with_text(verilog: str, names: Names) -> str:
    """Return the Verilog with a text wire beside each signal in `names`."""

    def extended(match: re.Match[str]) -> str:
        lines = []
        for signal, values in names.get(match[1], {}).items():
            if not re.search(rf"^  (?:wire|reg) [^;=]*\b{signal}\b", match[0], re.MULTILINE):
                continue  # Yosys merged it with a signal of another name
            width = 8 * max(map(len, values.values()))
            chosen = '"?"'
            for number, name in values.items():
                chosen = f'{signal} == {number} ? "{name}" : {chosen}'
            lines.append(f"  wire [{width - 1}:0] {signal}{TEXT_SUFFIX} = {chosen};")
        body = match[0].removesuffix("endmodule")
        return "\n".join([body.rstrip("\n"), *lines, "endmodule"])

    return _MODULE.sub(extended, verilog)


def save_view(file: Path, waves: Path, component: wiring.Component, top: str, names: Names) -> None:
    """Write a GTKWave save file: ports by stream, and the states of every block as text.

    Parameters
    ----------
    file : the save file, which ends in .gtkw
    waves : the waves file that the view opens
    """
    ports = list(port_members(component))
    with whole(file, "view of waves") as scratch, scratch.open("w", encoding="utf-8") as target:
        view = GTKWSave(target)
        view.dumpfile(str(waves))
        view.trace(f"{top}.clk")
        view.trace(f"{top}.rst")
        for stream in dict.fromkeys(name.partition("__")[0] for name in ports):
            with view.group(stream):
                for name in ports:
                    if name.partition("__")[0] == stream:
                        view.trace(f"{top}.{name}")
        with view.group("states"):
            for module, signals in names.items():
                path = module.replace(f"{top}_", f"{top}.", 1)
                for signal in signals:
                    if signal.endswith("state"):
                        view.trace(f"{path}.{signal}{TEXT_SUFFIX}", datafmt="ascii")
