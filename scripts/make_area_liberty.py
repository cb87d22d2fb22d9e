"""Write kvtq_hw/estimates/sky130hd_area.lib from the full Liberty file of the process.

The script copies facts: each cell's area, pins, functions and input capacitances. Delays are not
those of the process. Mapping needs delays, so one simple formula gives them for all cells (see the
header that this script writes). With the same cells allowed, mapping gives the same result but for
a few drive strengths.

Usage: python scripts/make_area_liberty.py sky130_fd_sc_hd__tt_025C_1v80.lib[.gz]
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvtq_hw.estimates.liberty import clock_gate_of, load_liberty
from kvtq_hw.estimates.liberty_format import Group

PREFIX = "sky130_fd_sc_hd__"
#: Kinds of cells that mapping may use; any other kind makes the area larger, or no smaller.
#: Flip-flops with enable are left out: abc sees no load at a flip-flop's pin, and puts no buffers
#: before the pin.
KINDS = """
    inv buf nand2 nand3 nand4 nor2 nor3 nor4 and2 and3 and4 or2 or3 or4 nand2b nor2b and2b or2b
    xor2 xnor2 mux2 mux2i maj3 a21oi o21ai a22oi o22ai a21o o21a a22o o22a a211oi o211ai a31oi
    o31ai a221oi o221ai dfxtp dlclkp
"""
DRIVES = ("0", "1", "2", "4")
DRIVES_OF_BUFFERS = (*DRIVES, "8", "16")

HEADER = """\
/* SkyWater 130 nm, library sky130_fd_sc_hd (high density): areas, functions and input capacitances
   of the cells that kvtq-hw maps to, dlclkp for its clock gates. Area only: THE DELAYS ARE MADE UP.

   Facts from the SkyWater Open Source PDK (https://github.com/google/skywater-pdk, Apache-2.0),
   corner tt, 25 C, 1.80 V: area in um^2, capacitance in pF. Extracted by
   scripts/make_area_liberty.py.

   Made up, because mapping wants delays, and the same for every cell:
     delay [ns] = 0.02 + 0.02 * inputs + 0.2 * input slew [ns] + 5 / drive * load [pF]
     slew  [ns] = 0.02 + 7.5 / drive * load [pF]
   They choose the same cells as the full file's do. Timing from them means nothing. */
"""
#: Marks of a clock gate's pins.
GATE_PINS = ("clock_gate_clock_pin", "clock_gate_enable_pin", "clock_gate_out_pin")
SLEWS = (0.01, 0.2)
LOADS = (0.0005, 0.05)


def main(source: Path) -> str:
    """Return the text of the area-only library."""
    cells = load_liberty(source).cells
    lines = [
        HEADER,
        "library (sky130_fd_sc_hd_area) {",
        "  delay_model : table_lookup;",
        '  time_unit : "1ns"; voltage_unit : "1V"; current_unit : "1mA";',
        '  pulling_resistance_unit : "1kohm"; leakage_power_unit : "1nW";',
        "  capacitive_load_unit (1, pf);",
        "  nom_voltage : 1.8; default_max_transition : 1.5;",
        "  lu_table_template (t) {",
        "    variable_1 : input_net_transition; variable_2 : total_output_net_capacitance;",
        f'    index_1 ("{SLEWS[0]}, {SLEWS[1]}"); index_2 ("{LOADS[0]}, {LOADS[1]}");',
        "  }",
    ]
    for kind in KINDS.split():
        for drive in DRIVES_OF_BUFFERS if kind in ("inv", "buf") else DRIVES:
            name = f"{PREFIX}{kind}_{drive}"
            if name in cells:
                lines += _cell(name, cells[name], float(drive) or 0.7)
    return "\n".join([*lines, "}", ""])


def _cell(name: str, cell: Group, drive: float) -> list[str]:
    pins = [pin for pin in cell.all("pin") if pin.get("direction") in ("input", "output")]
    inputs = sum(pin.get("direction") == "input" for pin in pins)
    lines = [f"  cell ({name}) {{", f"    area : {float(cell.get('area') or 0):.4f};"]
    if clock_gate_of(cell):
        (table,) = cell.all("statetable")
        names = ", ".join(f'"{name}"' for name in table.names)
        lines += [
            f'    clock_gating_integrated_cell : "{cell.get("clock_gating_integrated_cell")}";',
            f'    statetable ({names}) {{ table : "{table.get("table")}"; }}',
        ]
    registers = list(cell.all("ff"))
    for register in registers:
        clock, state = register.get("clocked_on"), register.get("next_state")
        names = ", ".join(register.names)
        lines.append(f'    ff ({names}) {{ clocked_on : "{clock}"; next_state : "{state}"; }}')
    for pin in pins:
        lines.append(f"    pin ({pin.names[0]}) {{")
        lines += [f"      {kind} : true;" for kind in GATE_PINS if pin.get(kind) == "true"]
        if pin.get("direction") == "input":
            clock = " clock : true;" if pin.get("clock") == "true" else ""
            capacitance = float(pin.get("capacitance") or 0)
            lines.append(f"      direction : input; capacitance : {capacitance:.6f};{clock}")
        else:
            limit = float(pin.get("max_capacitance") or 0)
            kind = "function" if pin.get("function") else "state_function"
            lines.append(
                f'      direction : output; {kind} : "{pin.get(kind)}"; '
                f"max_capacitance : {limit:.4f};"
            )
            if kind == "function" and not registers:
                lines += _arcs(pin, inputs, drive)
        lines.append("    }")
    return [*lines, "  }"]


def _arcs(pin: Group, inputs: int, drive: float) -> list[str]:
    def table(values: list[list[float]]) -> str:
        return ", ".join('"' + ", ".join(f"{value:.4f}" for value in row) + '"' for row in values)

    delay = table([[0.02 + 0.02 * inputs + 0.2 * s + 5 / drive * c for c in LOADS] for s in SLEWS])
    slew = table([[0.02 + 7.5 / drive * c for c in LOADS] for _ in SLEWS])
    tables = " ".join(
        f"{kind} (t) {{ values ({values}); }}"
        for kind, values in (
            ("cell_rise", delay),
            ("cell_fall", delay),
            ("rise_transition", slew),
            ("fall_transition", slew),
        )
    )
    arcs = dict.fromkeys(
        (arc.get("related_pin"), arc.get("timing_sense"))
        for arc in pin.all("timing")
        if arc.get("timing_type") in (None, "combinational")
    )
    return [
        f"      timing () {{ related_pin : {related}; timing_sense : {sense}; {tables} }}"
        for related, sense in arcs
    ]


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "kvtq_hw" / "estimates" / "sky130hd_area.lib"
    target.write_text(main(Path(sys.argv[1])), encoding="utf-8")
