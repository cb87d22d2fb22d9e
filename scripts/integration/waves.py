"""Timing diagrams of docs/integration.md, drawn by WaveDrom from a simulation of the preset tiny.

The testbench in plain Verilog runs in Icarus. A second top module writes every port of the
accelerator as it is at each rising edge of the clock; a diagram is a part of this recording, in
which stretches without a change are left out.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wavedrom

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.host.toolchain import icarus
from rtl.blocks import create_block, module_name
from rtl.manifest import manifest
from sim.plain.random_jobs import random_session
from sim.plain.testbench import files_of_testbench

__all__ = ["DIAGRAMS", "Recording", "diagram", "record", "spans"]

_SEED = 1
#: Cycles that are recorded: the tables and the first jobs.
_CYCLES = 1500
#: Cycles of the memory before a burst's first word: few, for short diagrams.
_LATENCY = 4
#: Columns without a change that are drawn; the rest of them is a gap.
_STILL = 2
#: Digits of a word that a column has room for.
_DIGITS = 8
_TOP = module_name("accelerator")


@dataclass(frozen=True)
class Recording:
    """Values of all ports, by name, at each rising edge of the clock."""

    widths: dict[str, int]
    values: dict[str, list[int]]

    def first(self, start: int, *ports: str) -> int:
        """Return the first edge from `start` on at which all ports are not zero.

        Raises
        ------
        ValueError
            When there is none.
        """
        for edge in range(start, len(self.values[ports[0]])):
            if all(self.values[port][edge] for port in ports):
                return edge
        raise ValueError(f"{' and '.join(ports)}: not high together in {_CYCLES} cycles")


def record(verilog: str, config: EngineConfig, folder: Path) -> Recording:
    """Run the testbench of the accelerator in a folder and return what its ports did."""
    ports = manifest(create_block("accelerator", config), _TOP, config, [])["ports"]
    texts = files_of_testbench(_TOP, random_session(config, _SEED))
    texts |= {f"{_TOP}.v": verilog, "recorder.v": _recorder([port["name"] for port in ports])}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    tops = ("-s", f"{_TOP}_tb", "-s", "recorder")
    sources = (f"{_TOP}_tb.v", f"{_TOP}.v", "recorder.v")
    build = ("iverilog", "-g2005", f"-P{_TOP}_tb.LATENCY={_LATENCY}", *tops, "-o", "r.vvp")
    for command in ([*build, *sources], ["vvp", "-N", "r.vvp"]):
        subprocess.run(command, cwd=folder, env=icarus().environment(), check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
    rows = [line.split() for line in (folder / "ports.txt").read_text("utf-8").splitlines()]
    # during the reset some are unknown
    columns = [
        [int(re.sub("[xz]", "0", value), 16) for value in column]
        for column in zip(*rows, strict=True)
    ]
    names = [port["name"] for port in ports]
    widths = {port["name"]: port["width"] for port in ports}
    return Recording(widths, dict(zip(names, columns, strict=True)))


def _recorder(ports: Sequence[str]) -> str:
    """Return a module that writes all ports of the testbench's accelerator at each edge."""
    formats, inside = " ".join(["%h"] * len(ports)), f"{_TOP}_tb.accelerator"
    values = ", ".join(f"{inside}.{port}" for port in ports)
    return (
        "module recorder;\n  integer file, count;\n  initial begin\n"
        '    file = $fopen("ports.txt", "w");\n'
        f"    for (count = 0; count < {_CYCLES}; count = count + 1) begin\n"
        f"      @(posedge {inside}.clk);\n"
        f'      $fwrite(file, "{formats}\\n", {values});\n'
        "    end\n    $finish;\n  end\nendmodule\n"
    )


# --- what is drawn --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diagram:
    """A diagram: its ports, and the edges that it shows, the last one included.

    ports : name of each port, with the name of the valid without which its value says nothing
    """

    ports: dict[str, str | None]
    edges: Callable[[Recording], tuple[int, int]]


def _channel(prefix: str, *payload: str, signals: str = "valid ready") -> dict[str, str | None]:
    """Return the ports of a channel: its handshake, and payloads that count while it is valid."""
    handshake: dict[str, str | None] = {f"{prefix}{name}": None for name in signals.split()}
    return handshake | {f"{prefix}{name}": f"{prefix}valid" for name in payload}


def _reset(recording: Recording) -> tuple[int, int]:
    access = recording.first(0, "s_axil_arvalid")
    return 0, access + 1


def _register_write(recording: Recording) -> tuple[int, int]:
    start = recording.first(0, "s_axil_awvalid")
    return start - 1, recording.first(start, "s_axil_bvalid", "s_axil_bready") + 1


def _register_read(recording: Recording) -> tuple[int, int]:
    start = recording.first(0, "s_axil_arvalid")
    return start - 1, recording.first(start, "s_axil_rvalid", "s_axil_rready") + 1


def _vectors(recording: Recording) -> tuple[int, int]:
    start = recording.first(0, "s_axis_key_value_tvalid", "s_axis_key_value_tready")
    handshake = ("s_axis_key_value_tvalid", "s_axis_key_value_tready", "s_axis_key_value_tlast")
    return start - 1, recording.first(start, *handshake) + 1


def _memory_read(recording: Recording) -> tuple[int, int]:
    start = recording.first(0, "m_axi_arvalid")
    return start - 1, recording.first(start, "m_axi_rvalid", "m_axi_rready", "m_axi_rlast") + 1


def _memory_write(recording: Recording) -> tuple[int, int]:
    start = recording.first(0, "m_axi_awvalid")
    return start - 1, recording.first(start, "m_axi_bvalid", "m_axi_bready") + 1


def _outputs(recording: Recording) -> tuple[int, int]:
    start = recording.first(0, "m_axis_output_tvalid")
    return start - 1, recording.first(start, "irq") + 1


#: The diagrams by the names of their files, ``docs/img/timing-NAME.svg``.
DIAGRAMS = {
    "reset": Diagram(
        {"rst": None, **_channel("s_axil_ar", "addr")},
        _reset,
    ),
    "register-write": Diagram(
        _channel("s_axil_aw", "addr") | _channel("s_axil_w", "data") | _channel("s_axil_b", "resp"),
        _register_write,
    ),
    "register-read": Diagram(
        _channel("s_axil_ar", "addr") | _channel("s_axil_r", "data", "resp"),
        _register_read,
    ),
    "vectors": Diagram(
        {
            "s_axis_key_value_tvalid": None,
            "s_axis_key_value_tready": None,
            "s_axis_key_value_tdata": "s_axis_key_value_tvalid",
            "s_axis_key_value_tlast": "s_axis_key_value_tvalid",
        },
        _vectors,
    ),
    "memory-read": Diagram(
        _channel("m_axi_ar", "addr", "len") | _channel("m_axi_r", "data", "last"),
        _memory_read,
    ),
    "memory-write": Diagram(
        _channel("m_axi_aw", "addr", "len")
        | _channel("m_axi_w", "data", "strb", "last")
        | _channel("m_axi_b", "resp"),
        _memory_write,
    ),
    "outputs": Diagram(
        {
            "m_axis_output_tvalid": None,
            "m_axis_output_tready": None,
            "m_axis_output_tdata": "m_axis_output_tvalid",
            "m_axis_output_tuser": "m_axis_output_tvalid",
            "m_axis_output_tlast": "m_axis_output_tvalid",
            "irq": None,
        },
        _outputs,
    ),
}


def spans(recording: Recording, drawing: Diagram) -> list[int | None]:
    """Return the edges that a diagram draws, None for a gap in which no port changes."""
    first, last = drawing.edges(recording)
    columns: list[int | None] = []
    still = 0
    for edge in range(first, last + 1):
        values = [recording.values[port] for port in drawing.ports]
        changes = edge == first or any(value[edge] != value[edge - 1] for value in values)
        still = 0 if changes else still + 1
        if still <= _STILL:
            columns.append(edge)
        elif columns[-1] is not None:
            columns.append(None)
    return columns


def diagram(recording: Recording, drawing: Diagram) -> str:
    """Return a diagram as SVG."""
    columns = spans(recording, drawing)
    clock = "p" + "".join("|" if edge is None else "." for edge in columns[1:])
    lanes: list[dict[str, Any]] = [{"name": "clk", "wave": clock}]
    for port, valid in drawing.ports.items():
        lanes.append(_lane(recording, port, valid, columns))
    source = json.dumps({"signal": lanes, "config": {"hscale": 2}})
    return _plain(wavedrom.render(source).tostring())


def _lane(
    recording: Recording, port: str, valid: str | None, columns: Sequence[int | None]
) -> dict[str, Any]:
    """Return WaveDrom's line of a port: bits as levels, words in hexadecimal, x while not valid."""
    width, values = recording.widths[port], recording.values[port]
    wave, words = "", []
    before: int | None = -1
    for edge in columns:
        if edge is None:
            wave += "|"
            continue
        value = None if valid and not recording.values[valid][edge] else values[edge]
        if value == before:
            wave += "."
        elif value is None:
            wave += "x"
        elif width == 1:
            wave += str(value)
        else:
            wave += "="
            words.append(_short(f"{value:0{-(-width // 4)}x}"))
        before = value
    return {"name": port, "wave": wave, "data": words}


def _short(digits: str) -> str:
    """Return hexadecimal digits, of many the first and the last, as there is room in a column."""
    return digits if len(digits) <= _DIGITS else f"{digits[:3]}..{digits[-3:]}"


def _plain(svg: str) -> str:
    """Return the picture without the shapes that it does not use, on a white ground."""
    used = set(re.findall(r'xlink:href="#([^"]+)"', svg))

    def kept(found: re.Match[str]) -> str:
        return found[0] if found[1] in used else ""

    svg = re.sub(r'<g id="([^"]+)">(?:(?!</?g\b).)*</g>(?=.*</defs>)', kept, svg, flags=re.DOTALL)
    ground = '<rect width="100%" height="100%" fill="white" />'
    return svg.replace("</defs>", f"</defs>{ground}", 1) + "\n"
