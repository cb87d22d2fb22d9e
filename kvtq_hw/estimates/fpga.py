"""FPGA resources after synthesis by Yosys: LUTs, flip-flops, memories, multipliers.

Synthesis alone gives no clock: see `kvtq_hw.estimates.place_and_route`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.files import scratch_folder
from kvtq_hw.estimates.store import design_key, user_store
from kvtq_hw.host.results import ResultStore
from rtl.blocks import create_block, module_name
from rtl.verilog import emit_rtlil
from rtl.yosys import run_yosys

__all__ = [
    "FAMILIES",
    "Family",
    "check_family",
    "fpga_resources",
    "synthesis_commands",
    "synthesize",
]


@dataclass(frozen=True)
class Family:
    """An FPGA family: its synthesis command and the kinds of its cells.

    Parameters
    ----------
    title : str
    command : str
        Yosys's synthesis command.
    kinds : Mapping[str, str]
        Pattern of cell names per kind of resource.
    """

    title: str
    command: str
    kinds: Mapping[str, str]

    def count(self, cells: Mapping[str, int]) -> dict[str, int]:
        """Count cells by kind of resource, from counts by cell type."""
        return {
            kind: sum(n for name, n in cells.items() if re.fullmatch(pattern, name))
            for kind, pattern in self.kinds.items()
        }


FAMILIES: Mapping[str, Family] = {
    "ecp5": Family(
        "Lattice ECP5",
        "synth_ecp5",
        {
            "lut": r"LUT4",
            "carry": r"CCU2C",
            "ff": r"TRELLIS_FF",
            "lutram": r"TRELLIS_DPR16X4",
            "bram": r"DP16KD|PDPW16KD",
            "dsp": r"MULT\w+",
        },
    ),
    "ice40": Family(
        "Lattice iCE40",
        "synth_ice40 -dsp",
        {
            "lut": r"SB_LUT4",
            "carry": r"SB_CARRY",
            "ff": r"SB_DFF\w*",
            "lutram": r"(?!)",
            "bram": r"SB_RAM40_4K\w*",
            "dsp": r"SB_MAC16",
        },
    ),
    "xc7": Family(
        "Xilinx 7-series",
        "synth_xilinx -family xc7 -noiopad -noclkbuf",
        {
            "lut": r"LUT[1-6]",
            "carry": r"CARRY4",
            "ff": r"FD[CPRS]E\w*",
            "lutram": r"RAM(?:32|64|128|256)\w+",
            "bram": r"RAMB(?:18|36)\w+",
            "dsp": r"DSP48E1",
        },
    ),
}


def fpga_resources(
    config: EngineConfig,
    family: str,
    block: str = "engine",
    store: ResultStore | None = None,
) -> dict[str, Any]:
    """Count cells of a block by kind ("lut", "carry", "ff", "lutram", "bram", "dsp") and by type.

    Raises
    ------
    UserError
        For an unknown family or block.
    """
    check_family(family)
    chosen = FAMILIES[family]
    component = create_block(block, config)
    store = store or user_store()
    key = {
        "what": "fpga",
        "commands": synthesis_commands(chosen.command, ""),
        **design_key(config, block),
    }

    def count() -> dict[str, int]:
        top = module_name(block)
        with scratch_folder() as folder:
            return synthesize(emit_rtlil(component, top), top, chosen.command, folder)

    cells = store.measured(key, dict[str, int], count)
    return {
        "tag": "measured",
        "family": chosen.title,
        **chosen.count(cells),
        "cells_by_type": cells,
    }


def check_family(family: str) -> None:
    """Raise `UserError` for a family that is not one of `FAMILIES`."""
    if family not in FAMILIES:
        raise UserError(f"family: {shown(family)} is unknown; allowed are {', '.join(FAMILIES)}")


def synthesis_commands(command: str, top: str) -> list[str]:
    """Return Yosys's commands that flatten a design and synthesize it for a family.

    Unused names are removed first: Yosys 0.70 confuses a wire ``x`` with a wire called ``x[0]``
    when it reads the netlist back from abc, and then fails an assertion.
    """
    first = [f"hierarchy -top {top}", "proc", "flatten", "opt_clean -purge"]
    return [*first, f"{command} -flatten -top {top}"]


def synthesize(rtlil: str, top: str, command: str, directory: Path, *more: str) -> dict[str, int]:
    """Synthesize a flattened design for a family and count cells by type.

    Parameters
    ----------
    directory : working directory of Yosys
    more : further commands on the mapped netlist
    """
    (directory / "design.il").write_text(rtlil, encoding="utf-8")
    run_yosys(
        [
            "read_rtlil design.il",
            *synthesis_commands(command, top),
            "tee -q -o cells.json stat -json",
            *more,
        ],
        directory,
    )
    statistics = json.loads((directory / "cells.json").read_text("utf-8"))
    found: dict[str, int] = statistics["modules"][f"\\{top}"]["num_cells_by_type"]
    return {name: count for name, count in sorted(found.items()) if name != "$scopeinfo"}
