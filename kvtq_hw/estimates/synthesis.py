"""Synthesis of one block by Yosys and abc: to library cells, and to generic gates for transistors.

Every design goes through the same commands with the same delay target, so that areas compare. The
commands are those of Yosys's own `synth`, except for memories. A writable memory stays a memory and
is counted in bits, since a memory macro or a register file would take its place. A read-only memory
(a table) becomes logic.

Flip-flops that share an enable get a clock gate, if the library has one; the others, multiplexers.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import scratch_folder
from kvtq_hw.estimates.blocks import Part
from kvtq_hw.estimates.liberty import Liberty
from kvtq_hw.host.results import ResultStore
from rtl.yosys import run_yosys, yosys_version

__all__ = ["CLOCK_MHZ", "Mapping", "map_part", "mapped_netlist", "mapping_key"]

#: Clock in MHz for which gates are sized. Every engine meets this clock on sky130, so that all
#: areas belong to the same clock.
CLOCK_MHZ = 100

#: Fewest flip-flops behind a clock gate: from four on the gate is smaller than their multiplexers.
_FEWEST_GATED = 4

#: Load at each output of a block, in femtofarads: the inputs of a few gates.
OUTPUT_LOAD_FF = 10

_COARSE = (
    "proc",
    "flatten",
    "opt_expr",
    "opt_clean",
    "check -assert",
    "opt -nodffe -nosdff",
    "fsm",
    "opt",
    "wreduce",
    "peepopt",
    "opt_clean",
    "alumacc",
    "share",
    "opt",
    "memory -nomap",
    "opt_clean",
    "opt -fast -full",
    "memory_map -rom-only",
    "opt -undriven -fine",
    "techmap",
    "opt -fast",
    "opt_clean",
    "delete t:$scopeinfo",
    "design -save gates",
)

_MEMORIES = ("memory_unpack", "tee -q -o memories.json stat -json")

# Flip-flops with enable and reset become plain flip-flops and gates, whose transistors `stat`
# counts.
_GENERIC = (
    "design -load gates",
    "dfflegalize -cell $_DFF_P_ 01",
    "opt_expr",
    "opt_clean",
    "abc -g cmos -script +strash;dc2;dch;map,-a",
    "opt_clean",
    "tee -q -o generic.json stat -json -tech cmos",
)


_MEMORY_PARAMETERS = """
    MEMID SIZE OFFSET ABITS WIDTH INIT RD_PORTS RD_CLK_ENABLE RD_CLK_POLARITY RD_TRANSPARENCY_MASK
    RD_COLLISION_X_MASK RD_WIDE_CONTINUATION RD_CE_OVER_SRST RD_ARST_VALUE RD_SRST_VALUE
    RD_INIT_VALUE WR_PORTS WR_CLK_ENABLE WR_CLK_POLARITY WR_PRIORITY_MASK WR_WIDE_CONTINUATION
"""

# Yosys's script for abc without its two sweeps for equal nodes (&fraig, scorr). On a divider the
# sweeps take 16 times as long as the rest, and they change the area by less than 1.3 %.
_SCRIPT = "+strash;dc2;strash;&get,-n;&dch,-f;&nf,{D};&put;buffer;upsize,{D};dnsize,{D};stime,-p"


@dataclass(frozen=True)
class Mapping:
    """Result of mapping one block.

    Parameters
    ----------
    cells : dict[str, int]
        Number of library cells by name, without memories and blocks inside.
    area : float
        Area of the cells in the library's unit.
    flip_flops : int
        Number of the cells that are flip-flops.
    transistors : int
        Yosys's estimate for generic gates, by its cost table for static CMOS.
    memory_bits : int
        Bits of writable memory, which `area` and `transistors` do not include.
    delay_ps : float
        Longest combinational path by abc's own timing, without wires; only as good as the
        library's delays.
    """

    cells: dict[str, int]
    area: float
    flip_flops: int
    transistors: int
    memory_bits: int
    delay_ps: float


def _delay_target_ps(clock_mhz: int) -> int:
    """Return abc's delay target in picoseconds: four fifths of the clock's period.

    The rest is for effects that abc does not see: delays and set-up times of flip-flops, slow
    edges.
    """
    return 800_000 // clock_mhz


def map_part(
    part: Part, liberty: Liberty, store: ResultStore, clock_mhz: int = CLOCK_MHZ
) -> Mapping:
    """Map a part to library cells; a mapping in `store` with the same content is reused.

    Raises
    ------
    UserError
        When Yosys or abc fails, or the library lacks a cell that the part needs.
    """
    found = store.get(mapping_key(part, liberty, clock_mhz), Mapping)
    return found or _map_and_store(part, liberty, store, clock_mhz)[0]


def mapped_netlist(
    part: Part, liberty: Liberty, store: ResultStore, clock_mhz: int = CLOCK_MHZ
) -> str:
    """Return the Verilog of a part mapped by `map_part`: instances of library cells.

    Raises
    ------
    UserError
        As `map_part`.
    """
    found = store.get_text(_netlist_key(part, liberty, clock_mhz))
    return found or _map_and_store(part, liberty, store, clock_mhz)[1]


def _map_and_store(
    part: Part, liberty: Liberty, store: ResultStore, clock_mhz: int
) -> tuple[Mapping, str]:
    """Map a part; store the mapping and the netlist."""
    mapping, netlist = _map(part, liberty, clock_mhz)
    store.put_text(_netlist_key(part, liberty, clock_mhz), netlist)
    store.put(mapping_key(part, liberty, clock_mhz), asdict(mapping))
    return mapping, netlist


def _netlist_key(part: Part, liberty: Liberty, clock_mhz: int) -> dict[str, Any]:
    return mapping_key(part, liberty, clock_mhz) | {"what": "netlist"}


def mapping_key(part: Part, liberty: Liberty, clock_mhz: int = CLOCK_MHZ) -> dict[str, Any]:
    """Return everything that a mapping depends on."""
    return {
        "what": "mapping",
        "part": part.digest,
        "liberty": liberty.digest,
        "commands": [*_COARSE, *_MEMORIES, *_GENERIC, *_library_commands(liberty, clock_mhz)],
        "constraints": _constraints(liberty),
        "yosys": yosys_version(),
    }


def _library_commands(liberty: Liberty, clock_mhz: int) -> list[str]:
    avoid = " ".join(f"-dont_use {cell}" for cell in liberty.cells_to_avoid)
    # abc caches a library under the file's name, so the name contains the digest of the content
    file = f"{liberty.digest[:16]}.lib"
    return [
        "design -load gates",
        *_gating_commands(liberty),
        f"dfflibmap {avoid} -liberty {file}",
        "opt -fast",
        f"abc {avoid} -liberty {file} -D {_delay_target_ps(clock_mhz)} -constr abc.constr "
        f"-script {_SCRIPT}",
        "opt_clean -purge",
        f"tee -q -o mapped.json stat -json -liberty {file}",
        # timing tools cannot read Verilog memories: each becomes an instance of an unknown module
        "chtype -set kvtq_memory t:$mem_v2",
        *(f"setparam -unset {name} t:kvtq_memory" for name in _MEMORY_PARAMETERS.split()),
        "write_verilog -noattr -noexpr -nohex mapped.v",
    ]


def _gating_commands(liberty: Liberty) -> list[str]:
    """Return the commands that put flip-flops of one enable behind a clock gate.

    Yosys's pass loses resets that take effect without the enable. So before it, every flip-flop
    with reset and enable takes its reset under an enable that the reset opens as well.
    """
    if (gate := liberty.clock_gate) is None:
        return []
    kinds = ("_DFF_P_", "_DFFE_PP_", "_SDFFCE_PP0P_", "_SDFFCE_PP1P_")
    pins = f"{gate.enable}:{gate.clock}:{gate.output}"
    return [
        f"dfflegalize {' '.join(f'-cell ${kind} 01' for kind in kinds)}",
        "opt_merge",
        "opt_clean",
        f"clockgate -pos {gate.cell} {pins} -min_net_size {_FEWEST_GATED}",
    ]


def _constraints(liberty: Liberty) -> str:
    return f"set_driving_cell {liberty.inverter}\nset_load {OUTPUT_LOAD_FF} [all_outputs]\n"


def _map(part: Part, liberty: Liberty, clock_mhz: int) -> tuple[Mapping, str]:
    if not any(any(cell.all("ff")) for cell in liberty.cells.values()):
        raise UserError(
            f"library {liberty.source!r} has no flip-flop; allowed are libraries of standard "
            "cells with flip-flops and gates"
        )
    with scratch_folder() as directory:
        (directory / "part.il").write_text(part.text, encoding="utf-8")
        (directory / f"{liberty.digest[:16]}.lib").write_text(liberty.text, encoding="utf-8")
        (directory / "abc.constr").write_text(_constraints(liberty), encoding="utf-8")
        commands = ["read_rtlil part.il", f"hierarchy -top {part.top}", *_COARSE]
        commands += [*_MEMORIES, *_GENERIC, *_library_commands(liberty, clock_mhz)]
        log = run_yosys(commands, directory)
        memories, generic, mapped = (
            _statistics(directory / f"{name}.json", part.top)
            for name in ("memories", "generic", "mapped")
        )
        netlist = (directory / "mapped.v").read_text("utf-8")
    cells = {
        name: count for name, count in mapped["num_cells_by_type"].items() if name in liberty.cells
    }
    delays = re.findall(r"^ABC: .*\bDelay = +([\d.]+) ps", log, re.MULTILINE)
    mapping = Mapping(
        cells=cells,
        area=round(sum(count * liberty.area(name) for name, count in cells.items()), 4),
        flip_flops=sum(n for name, n in cells.items() if any(liberty.cells[name].all("ff"))),
        transistors=int(str(generic["estimated_num_transistors"]).rstrip("+")),
        memory_bits=memories["num_memory_bits"],
        delay_ps=float(delays[-1]) if delays else 0.0,
    )
    left = set(mapped["num_cells_by_type"]) - set(cells)
    if unmapped := [name for name in left if name.startswith("$") and not name.startswith("$mem")]:
        raise UserError(
            f"library {liberty.source!r} has no cell for {', '.join(sorted(unmapped))} "
            f"in {part.block}"
        )
    return mapping, netlist


def _statistics(file: Path, top: str) -> dict[str, Any]:
    """Return Yosys's statistics of one module."""
    modules = json.loads(file.read_text("utf-8"))["modules"]
    return modules[f"\\{top}"]
