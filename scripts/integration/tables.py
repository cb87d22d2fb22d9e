"""Tables of docs/integration.md: ports, registers, memories, bandwidth and sizes.

Ports, widths, resets and latencies are those of `rtl.manifest.manifest`; addresses those of the
register map; sizes of memories those of the elaborated hardware; slices and bytes those of
`kvtq_hw.contract`; areas and clocks those recorded in docs/results.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from amaranth.hdl import Fragment, Shape
from amaranth.hdl._mem import MemoryInstance

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig, config_from_fields, load_config, preset_names
from kvtq_hw.contract.cycle_model import code_bound, code_job_cycles
from kvtq_hw.contract.packing import cache_bytes
from kvtq_hw.contract.registers import WORD_BYTES, JobStatus, Register, register_map
from rtl import burst_splitter, bus_master, control, record_reader, record_writer, scheduler
from rtl.accelerator import Accelerator
from rtl.blocks import create_block, module_name
from rtl.manifest import manifest
from rtl.reset import Reset

__all__ = ["TABLES", "covered_latency", "filled"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"

PRESETS = preset_names()
#: Codes of the tables, as in docs/cycles.md: keys in two or three digits, values in one or two.
CODES = {
    "K2/V1": CacheCode.parse("balanced:2/1,sinks=4,window=32"),
    "K3/V2": CacheCode.parse("balanced:3/2,sinks=4,window=32"),
}
PLANES = ((1, 1), (3, 2))
CONTEXT = 1024
_PORT_BITS = (32, 64, 128, 256, 512, 1024)
#: Smaller memories are registers in every technology.
_LEAST_MEMORY_BITS = 512

_UNUSABLE = (
    "The heads of all jobs in flight are lost: write them anew, by jobs from the first token on, "
    "or as an image with `value_exponent` in the next job."
)
_NEVER_RAN = (
    "Nothing was written, and the job's vectors are taken and discarded. Start the job again with "
    "a correct descriptor, if no later job of the head was started; otherwise the head is lost."
)
#: What software does after a job that ended badly.
ACTIONS = {
    JobStatus.NO_TOKENS: _NEVER_RAN,
    JobStatus.TOO_MANY_TOKENS: _NEVER_RAN,
    JobStatus.BAD_CODE: _NEVER_RAN,
    JobStatus.READ_ERROR: _UNUSABLE,
    JobStatus.READ_TRUNCATED: _UNUSABLE,
    JobStatus.WRITE_ERROR: _UNUSABLE,
}


def filled(page: str) -> str:
    """Return the page with the text between each ``<!-- table: NAME -->`` and ``<!-- end -->`` new.

    Raises
    ------
    KeyError
        For a name that is not in `TABLES`.
    """

    def new(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{TABLES[found[2]]()}\n\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", new, page, flags=re.DOTALL)


# --- clock, reset, ports --------------------------------------------------------------------------


@cache
def described(preset: str, reset: Reset = Reset.SYNC_HIGH) -> dict[str, Any]:
    """Return the manifest of a preset's accelerator."""
    config = load_config(preset)
    component = create_block("accelerator", config)
    return manifest(component, module_name("accelerator"), config, [], reset)


def resets() -> str:
    """Return a table of the kinds of reset."""
    rows = []
    for kind in Reset:
        entry = described("tiny", kind)["reset"]
        acts = "at the clock's rising edges" if entry["synchronous"] else "at once"
        rows.append((f"`{kind.value}`", f"`{entry['port']}`", entry["active"], acts))
    return _table(("`--reset`", "port", "active", "acts"), rows)


def buses() -> str:
    """Return a table of the accelerator's buses, with the text of its docstring."""
    texts = _attributes(Accelerator)
    entry = described("tiny")
    rows = [
        (f"`{bus['name']}`", bus["protocol"], _role(bus), texts[bus["name"]])
        for bus in entry["buses"]
    ]
    rows += [
        (f"`{signal['name']}`", "signal", signal["direction"], texts[signal["name"]])
        for signal in entry["signals"]
    ]
    return _table(("ports", "protocol", "the accelerator is", "carries"), rows)


def ports() -> str:
    """Return a table of all ports, with their widths in each preset."""
    lists = [described(preset)["ports"] for preset in PRESETS]
    rows = []
    for entries in zip(*lists, strict=True):
        widths = [str(entry["width"]) for entry in entries]
        rows.append((f"`{entries[0]['name']}`", entries[0]["direction"], *widths))
    return _table(("port", "direction", *(f"`{preset}`" for preset in PRESETS)), rows)


def latencies() -> str:
    """Return a table of the latencies of the engine's blocks in each preset."""
    lists = [described(preset)["latencies"] for preset in PRESETS]
    rows = [(f"`{name}`", *(str(entry[name]) for entry in lists)) for name in lists[0]]
    return _table(("cycles through", *(f"`{preset}`" for preset in PRESETS)), rows)


def _role(bus: dict[str, Any]) -> str:
    roles = {"in": "subordinate", "out": "manager"}
    if bus["protocol"] == "AxiStream":
        roles = {"in": "sink", "out": "source"}
    return roles[bus["direction"]]


def _attributes(component: type) -> dict[str, str]:
    """Return the descriptions under ``Attributes`` in a component's docstring, by name."""
    section = (inspect.getdoc(component) or "").split("Attributes\n----------\n")[1]
    found = re.findall(r"^(\w+) : (.*(?:\n    .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


# --- registers ------------------------------------------------------------------------------------


def addresses() -> str:
    """Return a table of the register map: a row for all registers that lie side by side."""
    rows = []
    registers = sorted(register_map().values(), key=lambda register: register.address)
    for _, group in groupby(_with_gaps(registers), key=lambda pair: pair[0]):
        side_by_side = [register for _, register in group]
        names = ", ".join(f"`{register.name}`" for register in side_by_side)
        last = _last_address(side_by_side[-1])
        rows.append((f"0x{side_by_side[0].address:03x} .. 0x{last:03x}", names))
    return _table(("addresses", "registers"), rows)


def statuses() -> str:
    """Return a table of the statuses of a job that ended badly, and what software does."""
    rows = [
        (str(int(status)), f"`{status.name}`", ACTIONS[status])
        for status in JobStatus
        if status is not JobStatus.OK
    ]
    return _table(("code", "status", "what the host does"), rows)


def _with_gaps(registers: Iterable[Register]) -> Iterator[tuple[int, Register]]:
    """Number each register by the gaps in the addresses before it."""
    gaps, following = 0, 0
    for register in registers:
        gaps += register.address != following
        following = _last_address(register) + WORD_BYTES
        yield gaps, register


def _last_address(register: Register) -> int:
    return register.address + WORD_BYTES * (register.count - 1)


# --- memory ---------------------------------------------------------------------------------------


def limits() -> str:
    """Return a table of limits of the memory port and of the queue, in each preset."""
    configs = [load_config(preset) for preset in PRESETS]
    longest = burst_splitter._LONGEST
    rows = [
        ("beats of a burst of reads", *(str(min(longest, c.read_ahead // 2)) for c in configs)),
        ("words that are read ahead", *(str(config.read_ahead) for config in configs)),
        _everywhere("bursts of reads under way", record_reader._BURSTS),
        _everywhere("bursts of writes under way", record_writer._BURSTS),
        _everywhere("bytes of a page that no burst leaves", burst_splitter._PAGE_BYTES),
        _everywhere("cycles without an answer, after an error", bus_master.PATIENCE),
        _everywhere("jobs in the queue", control._QUEUE),
        _everywhere("jobs in flight", scheduler.IN_FLIGHT),
    ]
    return _table(("most", *(f"`{preset}`" for preset in PRESETS)), rows)


def _everywhere(name: str, value: int) -> tuple[str, ...]:
    return name, *[f"{value:,}"] * len(PRESETS)


def memories() -> str:
    """Return a table of the accelerator's memories: how they are read, words x bits by preset."""
    shapes = [_memories(load_config(preset)) for preset in PRESETS]
    largest = {
        name
        for entry in shapes
        for name, (words, bits, _) in entry.items()
        if words * bits >= _LEAST_MEMORY_BITS
    }
    rows = [
        (
            f"`{name}`",
            "at the clock" if shapes[0][name].clocked else "at once",
            *(f"{entry[name].words:,} x {entry[name].bits:,}" for entry in shapes),
        )
        for name in shapes[0]
        if name in largest
    ]
    totals = [f"{_bits(load_config(preset)):,}" for preset in PRESETS]
    rows.append(("all memories, bits", "", *totals))
    return _table(("memory", "read", *(f"`{preset}`" for preset in PRESETS)), rows)


class _Memory(NamedTuple):
    """A memory: words, bits of a word, and whether a clock edge reads it."""

    words: int
    bits: int
    clocked: bool


@cache
def _memories(config: EngineConfig) -> dict[str, _Memory]:
    """Return each memory of an accelerator, by its place."""

    def walk(fragment: Any, path: tuple[str, ...]) -> Iterator[tuple[str, _Memory]]:
        if isinstance(fragment, MemoryInstance):
            memory, ports = fragment._data, fragment._read_ports
            clocked = all(port._domain != "comb" for port in ports)
            width = Shape.cast(memory.shape).width
            yield ".".join(path), _Memory(memory.depth, width, clocked)
        for inner, name, *_ in fragment.subfragments:
            yield from walk(inner, (*path, name))

    return dict(walk(Fragment.get(create_block("accelerator", config), None), ()))


def bandwidth() -> str:
    """Return a table of what full speed asks of the memory, over presets, planes and codes."""
    rows = []
    for preset in PRESETS:
        if load_config(preset).max_context < CONTEXT:
            continue
        for planes in PLANES:
            config = _with_planes(load_config(preset), planes)
            for name, code in CODES.items():
                slices, size = code_bound(config, code, CONTEXT), cache_bytes(config, code, CONTEXT)
                bits = next(bits for bits in _PORT_BITS if 8 * size <= slices * bits)
                wide = config.replace(memory_bits=max(bits, config.memory_bits))
                rows.append(
                    (
                        f"`{preset}`",
                        f"{planes[0]}/{planes[1]}",
                        name,
                        f"{slices:,}",
                        f"{size:,}",
                        f"{size / slices:.1f}",
                        str(bits),
                        f"{covered_latency(wide, code, CONTEXT)} at {wide.memory_bits} bits",
                    )
                )
    heads = ("preset", "planes", "code", "slices", "bytes", "bytes per cycle", "least port, bits",
             "latency, in cycles")  # fmt: skip
    return _table(heads, rows)


def covered_latency(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """Return the memory latency in cycles up to which the engine does not wait.

    The reader asks for a burst of at most half of `read_ahead` when it has room for all of it, so
    the other half, and no more, is sure to be there when the burst's first word is due. The engine
    uses up a word in as many cycles as a job has slices per word, at least one.
    """
    words = -(-8 * cache_bytes(config, code, tokens) // config.memory_bits)
    return int(config.read_ahead // 2 * max(1.0, code_bound(config, code, tokens) / words))


# --- sizes ----------------------------------------------------------------------------------------


def sizes() -> str:
    """Return a table of engines of `smollm2` by lanes and planes: measured area, cycles, bits."""
    recorded = json.loads((RESULTS / f"compare-smollm2-{CONTEXT}.json").read_text("utf-8"))
    base = config_from_fields(recorded["config"])
    areas = {
        (entry["lanes"], entry["key_planes"], entry["value_planes"]): entry["um2"]
        for way in recorded["ways"].values()
        for entry in way
        if entry["name"].startswith("ternary")
    }
    rows = []
    for (lanes, *planes), area in sorted(areas.items()):
        config = _with_planes(base.replace(lanes=lanes), (planes[0], planes[1]))
        row = [str(lanes), f"{planes[0]}/{planes[1]}", f"{area / 1e6:.3f}"]
        for code in CODES.values():
            cycles = code_job_cycles(config, code, CONTEXT)
            row += [f"{cycles:,}", f"{8 * cache_bytes(config, code, CONTEXT) / cycles:.0f}"]
        rows.append(tuple(row))
    of_codes = [f"{name}: {what}" for name in CODES for what in ("cycles", "bits per cycle")]
    return _table(("lanes", "planes", "area, mm2", *of_codes), rows)


def parameters() -> str:
    """Return a table of the memory bits that `read_ahead`, `table_heads` and anchors cost."""
    rows = []
    base = load_config("smollm2")
    before = _bits(base)
    for name, value in (("read_ahead", 2 * base.read_ahead), ("table_heads", base.table_heads + 1),
                        ("anchor_slots", 0)):  # fmt: skip
        old = getattr(base, name)
        rows.append(
            (
                f"`{name}`",
                f"{old} to {value}",
                f"{_bits(base.replace(**{name: value})) - before:+,}",
            )
        )
    return _table(("parameter", "from `smollm2`'s", "bits of memory"), rows)


def _bits(config: EngineConfig) -> int:
    """Return the bits of all memories of an accelerator."""
    return sum(memory.words * memory.bits for memory in _memories(config).values())


def fpga() -> str:
    """Return a table of recorded places and routes."""
    rows = []
    for path in sorted(RESULTS.glob("fpga-*.json")):
        recorded = json.loads(path.read_text("utf-8"))
        for place in recorded["place_and_route"].values():
            numbers = (f"{place[kind]:,}" for kind in ("logic_cells", "ff", "bram", "dsp"))
            rows.append(
                (
                    f"`{recorded['config']['name']}`, {recorded['block']}",
                    place["device"],
                    *numbers,
                    f"{place['fmax_mhz']:.1f}",
                )
            )
    return _table(("design", "device", "logic cells", "ff", "bram", "dsp", "MHz"), rows)


def _with_planes(config: EngineConfig, planes: tuple[int, int]) -> EngineConfig:
    return config.replace(key_planes_per_cycle=planes[0], value_planes_per_cycle=planes[1])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


#: The tables by the names of their markers.
TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        resets,
        buses,
        ports,
        latencies,
        addresses,
        statuses,
        limits,
        memories,
        bandwidth,
        sizes,
        parameters,
        fpga,
    )
}
