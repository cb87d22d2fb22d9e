"""Longest paths of an engine and of its blocks, by static timing analysis of the mapped netlist.

OpenSTA reads the netlist and the full library. Without OpenSTA, delays are abc's own sums of gate
delays along combinational paths, without flip-flops and set-up times; such numbers are marked
"abc". Neither tool knows the delays of wires.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import scratch_folder
from kvtq_hw.estimates.blocks import engine_parts
from kvtq_hw.estimates.lane_rows import row_of
from kvtq_hw.estimates.liberty import Liberty
from kvtq_hw.estimates.store import user_store
from kvtq_hw.estimates.synthesis import (
    CLOCK_MHZ,
    OUTPUT_LOAD_FF,
    map_part,
    mapped_netlist,
    mapping_key,
)
from kvtq_hw.estimates.workers import of_each_part
from kvtq_hw.host.results import ResultStore
from kvtq_hw.host.toolchain import Tool
from rtl.yosys import run_yosys

__all__ = ["LongestPath", "measure_timing"]

_PERIOD_NS = 10


@dataclass(frozen=True)
class LongestPath:
    """The longest path of a design.

    Parameters
    ----------
    delay_ps : float
        Delay in picoseconds, from a clock edge or an input to the set-up time before the next edge
        or to an output.
    start, end : str
        Names of start and end of the path; empty for abc, which does not report them.
    tool : str
        "opensta" or "abc".
    """

    delay_ps: float
    start: str
    end: str
    tool: str

    @property
    def fmax_mhz(self) -> float:
        """Highest clock that the path allows, in MHz."""
        return round(1e6 / self.delay_ps, 2) if self.delay_ps else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"tag": "measured", **asdict(self), "fmax_mhz": self.fmax_mhz}


def measure_timing(
    config: EngineConfig,
    liberty: Liberty,
    analyser: Tool | None,
    store: ResultStore | None = None,
    clock_mhz: int = CLOCK_MHZ,
) -> dict[str, LongestPath]:
    """Return the longest path of each block by its `row_of`, and of the whole engine as "total".

    A block is timed alone: between its flip-flops, and to and from its ports. With OpenSTA, the
    total includes paths through several blocks. abc knows no such paths: its total is the longest
    path of any block.

    Parameters
    ----------
    config : EngineConfig
    liberty : library with the delays of a process
    analyser : OpenSTA; None for the delays of abc
    store : store of results; None for the store in the user's cache folder
    clock_mhz : clock for which gates are sized

    Raises
    ------
    UserError
        When the library has no delays, or OpenSTA fails.
    """
    if not liberty.has_timing:
        raise UserError(
            "library: the shipped library holds areas alone; timing needs one with delays, for "
            "example sky130_fd_sc_hd__tt_025C_1v80.lib"
        )
    store = store or user_store()
    parts = engine_parts(config)
    if analyser is None:
        mappings = of_each_part(lambda part: map_part(part, liberty, store, clock_mhz), parts)
        found = [LongestPath(mapping.delay_ps, "", "", "abc") for mapping in mappings]
        total = max(found, key=_delay)
    else:
        netlists = of_each_part(lambda part: mapped_netlist(part, liberty, store, clock_mhz), parts)
        keys = [mapping_key(part, liberty, clock_mhz) for part in parts]
        found = [
            _analyse(part.top, netlist, [key], liberty, analyser, store)
            for part, netlist, key in zip(parts, netlists, keys, strict=True)
        ]
        total = _analyse(parts[-1].top, "\n".join(netlists), keys, liberty, analyser, store)
    paths: dict[str, LongestPath] = {}
    for part, path in zip(parts, found, strict=True):
        row = row_of(part.block, config)
        paths[row] = max(path, paths.get(row, path), key=_delay)
    return paths | {"total": total}


def _delay(path: LongestPath) -> float:
    return path.delay_ps


def _analyse(
    top: str,
    netlist: str,
    keys: list[dict[str, Any]],
    liberty: Liberty,
    analyser: Tool,
    store: ResultStore,
) -> LongestPath:
    script = _script(top, liberty)
    key = {"what": "timing", "of": keys, "tool": analyser.description, "script": script}

    def analyse() -> LongestPath:
        with scratch_folder() as directory:
            (directory / "cells.lib").write_text(liberty.text, encoding="utf-8")
            (directory / "mapped.v").write_text(netlist, encoding="utf-8")
            _write_plain(directory, top)
            (directory / "timing.tcl").write_text(script, encoding="utf-8")
            return _run(analyser, directory)

    return store.measured(key, LongestPath, analyse)


def _write_plain(directory: Path, top: str) -> None:
    """Write mapped.v as netlist.v, in the subset of Verilog that OpenSTA reads.

    OpenSTA reads neither signed wires nor an assignment to several wires at once.
    """
    read = ["read_verilog mapped.v", f"hierarchy -top {top}"]
    run_yosys([*read, "splitnets", "opt_clean", "write_verilog -noattr plain.v"], directory)
    text = (directory / "plain.v").read_text("utf-8")
    plain = re.sub(r"\b(wire|input|output) signed\b", r"\1", text)
    (directory / "netlist.v").write_text(plain, encoding="utf-8")


def _script(top: str, liberty: Liberty) -> str:
    load = OUTPUT_LOAD_FF / 1000
    return f"""\
read_liberty cells.lib
read_verilog netlist.v
link_design {top}
create_clock -name clk -period {_PERIOD_NS} [get_ports clk]
set_input_delay 0 -clock clk [all_inputs]
set_output_delay 0 -clock clk [all_outputs]
set_driving_cell -lib_cell {liberty.inverter} [all_inputs]
set_load {load} [all_outputs]
report_checks -path_delay max -digits 4
exit
"""


def _run(analyser: Tool, directory: Path) -> LongestPath:
    done = subprocess.run(
        [str(analyser.executable), "-no_splash", "-exit", "timing.tcl"],
        cwd=directory,
        env=analyser.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    fields = [
        re.search(pattern, done.stdout, re.MULTILINE)
        for pattern in (r"^Startpoint: (\S+)", r"^Endpoint: (\S+)", r"(-?[\d.]+) +slack \(")
    ]
    if done.returncode != 0 or not all(fields):
        reason = next((n for n in done.stdout.splitlines() if "rror" in n), "it found no path")
        raise UserError(f"opensta: timing analysis failed: {reason}")
    start, end, slack = (field[1] for field in fields if field)
    return LongestPath(round(1000 * (_PERIOD_NS - float(slack)), 1), start, end, "opensta")
