"""Timing constraints of generated Verilog: they name every port, and OpenSTA obeys them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bench_matrix import TINY

from kvtq_hw.host.toolchain import Tool
from rtl.blocks import create_block, emit_block
from rtl.constraints import timing_constraints
from rtl.manifest import manifest
from rtl.reset import Reset
from rtl.yosys import run_yosys

_TABLES = "".join(
    f'{name} (scalar) {{ values ("0.1"); }} '
    for name in ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
)
_LIMITS = "".join(f'{edge}_constraint (scalar) {{ values ("0.1"); }} ' for edge in ("rise", "fall"))
_THRESHOLDS = "".join(
    f"{name}_{edge} : {percent}; "
    for name, percent in (
        ("input_threshold_pct", 50),
        ("output_threshold_pct", 50),
        ("slew_lower_threshold_pct", 20),
        ("slew_upper_threshold_pct", 80),
    )
    for edge in ("rise", "fall")
)


def _input(name: str, timing: str = "", more: str = "") -> str:
    return f"pin ({name}) {{ direction : input; capacitance : 0.001; {more} {timing} }}"


def _output(function: str, *timing: str) -> str:
    arcs = "".join(f"timing () {{ {arc} {_TABLES} }}" for arc in timing)
    return f'pin (Y) {{ direction : output; function : "{function}"; {arcs} }}'


def _arc(pin: str, sense: str = "timing_sense : negative_unate;") -> str:
    return f'related_pin : "{pin}"; {sense}'


def _check(kind: str) -> str:
    return f'timing () {{ related_pin : "CK"; timing_type : {kind}; {_LIMITS} }}'


_CLOCK = _input("CK", more="clock : true;")
_DATA = _input("D", _check("setup_rising"))
_FLOP = 'ff (IQ, IQN) { clocked_on : "CK"; next_state : "D";'

#: Cells whose delays, set-up and recovery times are 0.1 ns: an inverter, a NAND and flip-flops.
LIBERTY = f"""library (cells) {{
  delay_model : table_lookup; time_unit : "1ns"; capacitive_load_unit (1, pf);
  voltage_unit : "1V"; current_unit : "1mA"; pulling_resistance_unit : "1kohm";
  leakage_power_unit : "1nW"; nom_process : 1; nom_voltage : 1; nom_temperature : 25;
  {_THRESHOLDS}
  cell (INV) {{ area : 1; {_input("A")} {_output("!A", _arc("A"))} }}
  cell (NAND) {{ area : 1; {_input("A")} {_input("B")} {_output("!(A*B)", _arc("A B"))} }}
  cell (DFF) {{ area : 1; {_FLOP} }} {_CLOCK} {_DATA}
    {_output("IQ", _arc("CK", "timing_type : rising_edge;"))} }}
  cell (DFFR) {{ area : 1; {_FLOP} clear : "R"; }} {_CLOCK} {_DATA}
    {_input("R", _check("recovery_rising"))}
    {
    _output(
        "IQ",
        _arc("CK", "timing_type : rising_edge;"),
        _arc("R", "timing_type : clear; timing_sense : negative_unate;"),
    )
} }}
}}
"""
MAPPING = r"""
module \$_NOT_ (input A, output Y); INV _TECHMAP_REPLACE_ (.A(A), .Y(Y)); endmodule
module \$_NAND_ (input A, B, output Y); NAND _TECHMAP_REPLACE_ (.A(A), .B(B), .Y(Y)); endmodule
"""
TOP = "kvtq_control"


def described(block: str, reset: Reset = Reset.SYNC_HIGH) -> dict[str, Any]:
    return manifest(create_block(block, TINY), f"kvtq_{block}", TINY, [], reset)


@pytest.mark.parametrize("block", ["accelerator", "engine"])
def test_every_port_is_named_once(block: str) -> None:
    description = described(block, Reset.SYNC_LOW)
    text = timing_constraints(description)
    assert "set_false_path" not in text
    for direction in ("in", "out"):
        (listed,) = re.findall(
            rf"^set_{direction}put_delay \$\S+ -clock clk \[get_ports {{\n(.*?)\n}}\]$",
            text,
            re.MULTILINE | re.DOTALL,
        )
        assert listed.split() == [
            port["name"] + ("[*]" if port["width"] > 1 else "")
            for port in description["ports"]
            if port["direction"] == direction and port["name"] != "clk"
        ]


def netlist(folder: Path, reset: Reset) -> None:
    """Write the block `control`, which has an AXI port and an interrupt, in the library's cells."""
    verilog = emit_block("control", TINY, reset=reset, initial_values=False)
    (folder / "control.v").write_text(verilog)
    (folder / "cells.lib").write_text(LIBERTY)
    (folder / "mapping.v").write_text(MAPPING)
    run_yosys(
        [
            "read_verilog control.v",
            f"hierarchy -top {TOP}",
            "proc",
            "flatten",
            "memory_map",
            "opt -fast",
            "techmap",
            "opt -fast",
            "setattr -unset init",
            "dfflibmap -liberty cells.lib",
            "abc -g NAND",
            "techmap -map mapping.v",
            "opt_clean",
            "splitnets",
            "opt_clean",
            "write_verilog -noattr netlist.v",
        ],
        folder,
    )
    text = (folder / "netlist.v").read_text("utf-8")
    (folder / "netlist.v").write_text(re.sub(r"\b(wire|input|output) signed\b", r"\1", text))


def analysed(analyser: Tool, folder: Path, constraints: str, *commands: str) -> str:
    """Return what OpenSTA says about the netlist under constraints."""
    read = ["read_liberty cells.lib", "read_verilog netlist.v", f"link_design {TOP}"]
    (folder / "constraints.sdc").write_text(constraints)
    (folder / "script.tcl").write_text("\n".join([*read, *commands]))
    done = subprocess.run(
        [analyser.executable, "-no_splash", "-exit", "script.tcl"],
        cwd=folder,
        env=analyser.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("reset", Reset)
def test_opensta_reads_them(analyser: Tool, reset: Reset, tmp_path: Path) -> None:
    """Without a warning; no input, output or clock is missing; a reset's end is in time."""
    netlist(tmp_path, reset)
    constraints = timing_constraints(described("control", reset))
    source = "source constraints.sdc"
    checks = "check_setup -verbose -no_input_delay -no_output_delay -no_clock"
    assert analysed(analyser, tmp_path, constraints, source, checks) == ""
    without = constraints.replace("s_axil_awvalid", "").replace("axi_awvalid", "")
    found = analysed(analyser, tmp_path, without, source, checks)
    assert re.search(r"^Warning: There is 1 input port missing set_input_delay", found)

    # From a port to a register: 3 of 10 ns outside, or what the variables say.
    report = f"report_checks -digits 3 -from [get_ports {reset.port}]"
    found = analysed(analyser, tmp_path, constraints, source, report)
    assert re.search(rf"^ +3\.000 +3\.000 [v^] input external delay\n.* {reset.port} \(in\)$",
                     found, re.MULTILINE)  # fmt: skip
    assert ("recovery check" in found) is not reset.synchronous
    given = "set clock_period 5; set input_delay 1"
    found = analysed(analyser, tmp_path, constraints, given, source, report)
    assert re.search(r"^ +1\.000 +1\.000 [v^] input external delay$", found, re.MULTILINE)
    assert re.search(r"^ +5\.000 +5\.000 +clock clk \(rise edge\)$", found, re.MULTILINE)

    # An asynchronous reset may begin at any time.
    begin, end = ("rise", "fall") if reset.active == "high" else ("fall", "rise")
    for edge, timed in ((begin, reset.synchronous), (end, True)):
        report = f"report_checks -{edge}_from [get_ports {reset.port}]"
        found = analysed(analyser, tmp_path, constraints, source, report)
        assert ("data arrival time" in found) is timed, edge
