"""Cycle simulation of a gate netlist: counts the toggles of each net.

Between two clock edges every net has one settled value; a change of that value is a toggle.
Glitches within a cycle are not simulated, so counts are a lower bound. Memories read and write at
the clock edge; a read gives the content before the write. A clock gate passes an edge if its enable
is 1 then. Outputs are compared in every cycle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.compiled import Array, compiled, loop_part

__all__ = ["ONE", "ZERO", "Gates", "Node", "simulate"]

#: The two constant nets.
ZERO, ONE = 0, 1


@dataclass(frozen=True)
class Node:
    """One net as a function of its input nets.

    `table` has the net's value for all values of the inputs; the last input changes fastest.
    """

    net: int
    inputs: Sequence[int]
    table: tuple[bool, ...]


@dataclass(frozen=True)
class Gates:
    """A flat netlist.

    Parameters
    ----------
    nets : int
        Number of nets, `ZERO` and `ONE` included.
    ports : Mapping[str, Sequence[int]]
        Nets of each port, least significant bit first.
    nodes : Sequence[Node]
        Combinational nodes, each after the nodes that drive its inputs.
    states : Sequence[Node]
        Flip-flops: the node's value after the next clock edge.
    memories : Sequence[Mapping[str, Sequence[int]]]
        Nets of the ports RD_ADDR, RD_EN, RD_DATA, WR_ADDR, WR_DATA and WR_EN (one per bit).
    clocks : Sequence[tuple[int, int]]
        Gated clocks, each with the net of its enable. `states` hold their value without it.
    """

    nets: int
    ports: Mapping[str, Sequence[int]]
    nodes: Sequence[Node]
    states: Sequence[Node]
    memories: Sequence[Mapping[str, Sequence[int]]]
    clocks: Sequence[tuple[int, int]]


def simulate(
    gates: Gates,
    stimulus: Mapping[str, NDArray[np.uint8]],
    expected: Mapping[str, NDArray[np.uint8]],
    first: int = 0,
) -> NDArray[np.int64]:
    """Run the netlist and count toggles.

    Parameters
    ----------
    stimulus : bits of each input port per cycle, [cycles, width]; all state starts at zero
    expected : bits of output ports per cycle, compared from cycle `first` on
    first : cycle from which toggles count

    Returns
    -------
    array of int64 [nets]
        Toggles of each net; of a gated clock, two in each cycle with its enable.

    Raises
    ------
    ValueError
        When an output differs: the counts would belong to another circuit.
    """
    cycles = len(next(iter(stimulus.values())))
    inputs, values = _columns(gates, stimulus, cycles)
    outputs, wanted = _columns(gates, expected, cycles)
    toggles = np.zeros(gates.nets, np.int64)
    wrong = _run(
        *_flat(gates.nodes),
        *_flat(gates.states),
        *_flat_memories(gates.memories),
        np.array(gates.clocks, np.int32).reshape(-1, 2),
        inputs,
        values,
        outputs,
        wanted,
        first,
        toggles,
    )
    if wrong >= 0:
        names = [name for name, bits in expected.items() for _ in range(bits.shape[1])]
        cycle, column = divmod(wrong, len(names))
        raise ValueError(f"netlist: output {names[column]} differs in cycle {cycle}")
    return toggles


def _columns(
    gates: Gates, ports: Mapping[str, NDArray[np.uint8]], cycles: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the nets of all bits of some ports, and their values [cycles, bits]."""
    nets = [net for name in ports for net in gates.ports[name]]
    bits = [np.asarray(bits, np.uint8) for bits in ports.values()]
    joined = np.concatenate(bits, axis=1) if bits else np.zeros((cycles, 0), np.uint8)
    if joined.shape != (cycles, len(nets)):
        raise ValueError(f"ports are {len(nets)} bits wide, the values {joined.shape}")
    return np.array(nets, np.int32), np.ascontiguousarray(joined)


def _flat(
    nodes: Sequence[Node],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], Any]:
    """Return nodes as arrays: output nets, starts of inputs, inputs, starts of tables, tables.

    The array of starts of inputs ends with the number of inputs.
    """
    tables: dict[tuple[bool, ...], int] = {}
    size = 0
    for table in (node.table for node in nodes):
        if table not in tables:
            tables[table] = size
            size += len(table)
    lengths = [len(node.inputs) for node in nodes]
    return (
        np.array([node.net for node in nodes], np.int32),
        np.cumsum([0, *lengths]).astype(np.int32),
        np.array([net for node in nodes for net in node.inputs], np.int32),
        np.array([tables[node.table] for node in nodes], np.int32),
        np.array([value for table in tables for value in table], np.uint8),
    )


_MEMORY_PORTS = ("RD_ADDR", "RD_EN", "RD_DATA", "WR_ADDR", "WR_DATA", "WR_EN")


def _flat_memories(
    memories: Sequence[Mapping[str, Sequence[int]]],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8]]:
    """Return memories as arrays: starts of ports, nets of ports, starts of contents, contents.

    A row of starts of ports is one memory's and ends with the end of its last port. All contents
    are zero.
    """
    widths = np.array([[len(memory[port]) for port in _MEMORY_PORTS] for memory in memories], int)
    widths = widths.reshape(-1, len(_MEMORY_PORTS))
    read_address, _, data, write_address, written, enables = widths.T
    if (written != data).any() or (enables != data).any() or not (widths[:, 1] == 1).all():
        raise ValueError("memories: RD_DATA, WR_DATA and WR_EN must be equally wide, RD_EN one bit")
    ends = widths.cumsum().reshape(widths.shape)
    starts = np.concatenate((ends[:, :1] - widths[:, :1], ends), 1).astype(np.int32)
    sizes = (1 << np.maximum(read_address, write_address)) * data
    nets = [net for memory in memories for port in _MEMORY_PORTS for net in memory[port]]
    return (
        starts,
        np.array(nets, np.int32),
        np.cumsum([0, *sizes]),
        np.zeros(int(sizes.sum()), np.uint8),
    )


@loop_part
def _value(values, node, start, inputs, table, tables):
    """Return the value of a node from the present values of its inputs."""
    row = 0
    for place in range(start[node], start[node + 1]):
        row = row * 2 + values[inputs[place]]
    return tables[table[node] + row]


@loop_part
def _put(values, toggles, net, value, counted):
    """Put a value on a net, and count a toggle if `counted`."""
    toggles[net] += counted and values[net] != value
    values[net] = value


@loop_part
def _first_wrong(values, outputs, expected):
    """Return the column of the first output that differs from `expected`; -1 if none does."""
    wrong = -1
    for column in range(len(outputs) - 1, -1, -1):
        if values[outputs[column]] != expected[column]:
            wrong = column
    return wrong


@loop_part
def _address(values, nets):
    """Return the number on the nets of an address port."""
    address = 0
    for place in range(len(nets)):
        address |= int(values[nets[place]]) << place
    return address


@loop_part
def _clock_memory(values, toggles, nets, ends, content, counted):
    """Clock a memory; port k has the nets `nets[ends[k] : ends[k + 1]]`."""
    enable, data = nets[ends[1]], nets[ends[2] : ends[3]]
    written, writes = nets[ends[4] : ends[5]], nets[ends[5] : ends[6]]
    word = _address(values, nets[ends[0] : ends[1]]) * len(data)
    # read before the write, put on the nets after it: a word's nets are no memory's input
    reading = values[enable]
    old = content[word : word + len(data)].copy()
    word = _address(values, nets[ends[3] : ends[4]]) * len(data)
    for place in range(len(writes)):
        if values[writes[place]]:
            content[word + place] = values[written[place]]
    if reading:
        for place in range(len(data)):
            _put(values, toggles, data[place], old[place], counted)


def _nodes(kind: str) -> tuple[tuple[str, ...], dict[str, Array]]:
    """Return what arrays of nodes must satisfy: consecutive inputs, every row inside its table."""
    return (
        f"{kind}_starts == {kind}_count + 1 and {kind}_start[0] == 0",
        f"(np.diff({kind}_start) >= 0).all() and {kind}_start[-1] == {kind}_pins",
        f"({kind}_table >= 0).all()",
        f"({kind}_table + 2.0 ** np.diff({kind}_start) <= {kind}_rows).all()",
    ), {
        f"{kind}_net": Array(np.int32, f"{kind}_count", below="nets"),
        f"{kind}_start": Array(np.int32, f"{kind}_starts"),
        f"{kind}_inputs": Array(np.int32, f"{kind}_pins", below="nets"),
        f"{kind}_table": Array(np.int32, f"{kind}_count"),
        f"{kind}_tables": Array(np.uint8, f"{kind}_rows", below=2),
    }


_NODE_RULES, _NODES = _nodes("node")
_STATE_RULES, _STATES = _nodes("state")


@compiled(
    *_NODE_RULES,
    *_STATE_RULES,
    "nets >= 2",
    "memory_start.min(initial=0) >= 0 and memory_start.max(initial=0) <= memory_pins",
    "(np.diff(memory_start) >= 0).all() and (memory_start[:, 2] - memory_start[:, 1] == 1).all()",
    # read data, write data and write enables are equally wide
    "(np.diff(memory_start)[:, [4, 5]] == np.diff(memory_start)[:, [2]]).all()",
    "content_starts == memories + 1 and content_start[0] >= 0 and content_start[-1] <= bits",
    "(np.diff(content_start) >= np.diff(memory_start)[:, 2] * "
    "2.0 ** np.diff(memory_start)[:, [0, 3]].max(-1, initial=0)).all()",
    **_NODES,
    **_STATES,
    memory_start=Array(np.int32, "memories", 7),
    memory_nets=Array(np.int32, "memory_pins", below="nets"),
    content_start=Array(np.int64, "content_starts"),
    contents=Array(np.uint8, "bits", written=True),
    clocks=Array(np.int32, "gated", 2, below="nets"),
    inputs=Array(np.int32, "columns", below="nets"),
    stimulus=Array(np.uint8, "cycles", "columns", below=2),
    outputs=Array(np.int32, "compared", below="nets"),
    expected=Array(np.uint8, "cycles", "compared"),
    first=int,
    toggles=Array(np.int64, "nets", written=True),
)
def _run(
    node_net,
    node_start,
    node_inputs,
    node_table,
    node_tables,
    state_net,
    state_start,
    state_inputs,
    state_table,
    state_tables,
    memory_start,
    memory_nets,
    content_start,
    contents,
    clocks,
    inputs,
    stimulus,
    outputs,
    expected,
    first,
    toggles,
):
    """Run all cycles; return the flat index in `expected` of the first wrong output, or -1."""
    values = np.zeros(len(toggles), np.uint8)
    values[1] = 1
    following = np.zeros(len(state_net), np.uint8)
    for cycle in range(len(stimulus)):
        counted = cycle >= first
        for column in range(len(inputs)):
            _put(values, toggles, inputs[column], stimulus[cycle, column], counted)
        for node in range(len(node_net)):
            value = _value(values, node, node_start, node_inputs, node_table, node_tables)
            _put(values, toggles, node_net[node], value, counted)
        wrong = _first_wrong(values, outputs, expected[cycle])
        if counted and wrong >= 0:
            return cycle * len(outputs) + wrong
        for clock in range(len(clocks)):
            toggles[clocks[clock, 0]] += 2 * (counted and values[clocks[clock, 1]])
        for state in range(len(state_net)):
            following[state] = _value(
                values, state, state_start, state_inputs, state_table, state_tables
            )
        for memory in range(len(memory_start)):
            content = contents[content_start[memory] :]
            ends = memory_start[memory]
            _clock_memory(values, toggles, memory_nets, ends, content, counted)
        for state in range(len(state_net)):
            _put(values, toggles, state_net[state], following[state], counted)
    return -1
