"""Turns a mapped netlist into gates for simulation, by the cells' functions in Liberty."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import scratch_folder
from kvtq_hw.estimates.gate_simulation import ONE, ZERO, Gates, Node
from kvtq_hw.estimates.liberty import Liberty, clock_gate_of, pins_of, truth_table
from kvtq_hw.estimates.liberty_format import Group
from rtl.yosys import run_yosys

__all__ = ["Cell", "Mapped", "link"]

_MEMORY = "kvtq_memory"

#: Name, in the next state of a flip-flop behind a clock gate, of the gate's enable.
_OPEN = "_clock_is_open_"


@dataclass(frozen=True)
class Cell:
    """An instance of a library cell: its path in the design, its cell, the nets of its pins.

    clock : the clock pin of a flip-flop or of a clock gate; empty for any other cell
    """

    name: str
    kind: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    clock: str


@dataclass(frozen=True)
class Mapped:
    """A flat netlist as gates, and its library cells."""

    gates: Gates
    cells: Sequence[Cell]


def link(netlists: Iterable[str], top: str, liberty: Liberty) -> Mapped:
    """Link Verilog modules of library cells into the flat netlist of the design `top`.

    Raises
    ------
    UserError
        For what the simulation does not support: latches other than those of clock gates, clock
        gates one behind the other, asynchronous resets in use, memories that are read without a
        clock, combinational loops.
    """
    with scratch_folder() as directory:
        for number, text in enumerate(netlists):
            (directory / f"{number}.v").write_text(text, encoding="utf-8")
        reads = [f"read_verilog {file.name}" for file in sorted(directory.glob("*.v"))]
        commands = [*reads, f"hierarchy -top {top}", "flatten", "delete t:$scopeinfo", "opt_clean"]
        run_yosys([*commands, "write_json flat.json"], directory)
        module = json.loads((directory / "flat.json").read_text("utf-8"))["modules"][top]
    return _Linker(liberty).mapped(module)


@dataclass
class _Linker:
    """Turns Yosys's JSON of a flat module into gates."""

    liberty: Liberty
    numbers: dict[int | str, int] = field(
        default_factory=lambda: {"0": ZERO, "1": ONE, "x": ZERO, "z": ZERO}
    )
    cells: list[Cell] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    states: list[Node] = field(default_factory=list)
    memories: list[dict[str, list[int]]] = field(default_factory=list)
    enables: dict[int, int] = field(default_factory=dict)  # of gated clocks

    def mapped(self, module: Mapping[str, Any]) -> Mapped:
        ports = {name: self._nets(port["bits"]) for name, port in module["ports"].items()}
        # clock gates come first: a flip-flop behind one needs to know its enable
        cells = sorted(module["cells"].items())
        for name, cell in sorted(cells, key=lambda item: not self._is_gate(item[1])):
            nets = {pin: self._nets(bits) for pin, bits in cell["connections"].items()}
            if cell["type"] == _MEMORY:
                clocked = nets["RD_CLK"][0] not in (ZERO, ONE)
                if not clocked or len(nets["WR_EN"]) != len(nets["RD_DATA"]):
                    raise UserError(f"power: memory {name} has ports that are not simulated")
                self.memories.append(nets)
            elif cell["type"] not in self.liberty.cells:
                raise UserError(f"power: {name}: no {cell['type']} in {self.liberty.name!r}")
            else:
                self._add(name, cell["type"], {pin: bits[0] for pin, bits in nets.items()})
        count = len(self.numbers) - 2  # the constants x and z share the net of zero
        clocks = list(self.enables.items())
        gates = Gates(count, ports, _sorted(self.nodes), self.states, self.memories, clocks)
        return Mapped(gates, self.cells)

    def _is_gate(self, cell: Mapping[str, Any]) -> bool:
        group = self.liberty.cells.get(cell["type"])
        return group is not None and clock_gate_of(group) is not None

    def _nets(self, bits: Sequence[int | str]) -> list[int]:
        return [self._net(bit) for bit in bits]

    def _net(self, bit: int | str) -> int:
        return self.numbers.setdefault(bit, len(self.numbers) - 2)

    def _add(self, name: str, kind: str, nets: Mapping[str, int]) -> None:
        """Add an instance of a library cell."""
        group = self.liberty.cells[kind]
        pins = pins_of(group)
        if gate := clock_gate_of(group):
            if nets[gate.clock] in self.enables:
                raise UserError(f"power: {name} is a clock gate behind another one")
            self.enables[nets[gate.output]] = nets[gate.enable]
            inputs = {pin: nets[pin] for pin in (gate.clock, gate.enable)}
            outputs = {gate.output: nets[gate.output]}
            self.cells.append(Cell(name, kind, inputs, outputs, gate.clock))
            return
        if any(group.all("latch")) or any(group.all("statetable")):
            raise UserError(f"power: {name} is a latch, which is not simulated")
        inputs = {pin: n for pin, n in nets.items() if pins[pin].get("direction") == "input"}
        outputs = {pin: n for pin, n in nets.items() if pins[pin].get("direction") == "output"}
        functions = {pin: str(pins[pin].get("function")) for pin in outputs}
        operands, clock = dict(inputs), ""
        for flip_flop in group.all("ff"):
            clock = _clock(name, flip_flop, inputs)
            state, inverse = flip_flop.names
            # an output whose function is the state is the state's net
            plain = [pin for pin, function in functions.items() if function == state]
            net = outputs[plain[0]] if plain else self._net(f"{name}.{state}")
            operands[state] = net
            following = str(flip_flop.get("next_state"))
            if (enable := self.enables.get(inputs[clock])) is not None:
                operands[_OPEN] = enable
                following = f"({_OPEN} & ({following})) | (!{_OPEN} & {state})"
            self.states.append(_node(net, following, operands))
            functions = {
                pin: f"!{state}" if function == inverse else function
                for pin, function in functions.items()
                if pin not in plain[:1]
            }
        for pin, function in functions.items():
            self.nodes.append(_node(outputs[pin], function, operands))
        self.cells.append(Cell(name, kind, inputs, outputs, clock))


def _clock(name: str, flip_flop: Group, inputs: Mapping[str, int]) -> str:
    """Return the clock pin of a flip-flop; raises if anything but the clock changes its state."""
    for attribute in ("clear", "preset"):
        if active := flip_flop.get(attribute):
            node = _node(ZERO, active, inputs)
            if set(node.inputs) - {ZERO, ONE}:
                raise UserError(f"power: {name} has an asynchronous reset, which is not simulated")
            row = 0
            for net in node.inputs:
                row = 2 * row + net
            if node.table[row]:
                raise UserError(f"power: {name} is reset for ever")
    clock = str(flip_flop.get("clocked_on"))
    if clock not in inputs:
        raise UserError(f"power: {name} has no plain clock pin")
    return clock


def _node(net: int, function: str, operands: Mapping[str, int]) -> Node:
    names = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", function))
    used = [name for name in names if name in operands]
    try:
        table = truth_table(function, used)
    except ValueError as error:
        raise UserError(f"power: a cell's {error}") from None
    return Node(net, [operands[name] for name in used], table)


def _sorted(nodes: Sequence[Node]) -> list[Node]:
    """Sort combinational nodes: each node comes after the nodes that drive its inputs."""
    drivers = {node.net for node in nodes}
    waiting = {node.net: sum(net in drivers for net in node.inputs) for node in nodes}
    readers: dict[int, list[Node]] = {}
    for node in nodes:
        for net in node.inputs:
            readers.setdefault(net, []).append(node)
    order: list[Node] = []
    ready = [node for node in nodes if not waiting[node.net]]
    while ready:
        order.append(ready.pop())
        for reader in readers.get(order[-1].net, ()):
            waiting[reader.net] -= 1
            if not waiting[reader.net]:
                ready.append(reader)
    if len(order) != len(nodes):
        raise UserError("power: the netlist has a combinational loop")
    return order
