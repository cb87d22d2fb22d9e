"""FuseSoC core files (CAPI2) of generated Verilog: targets for lint, simulation and synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from kvtq_hw import __version__
from kvtq_hw.contract.config import EngineConfig

__all__ = ["core_file"]

_START = """CAPI=2:
# Run a target with: fusesoc --cores-root . run --target=lint {top}
name: "::{top}:{version}"
description: "Attention on a ternary KV cache, configuration {name}, digest {digest}"

filesets:
  rtl:
    files: [{top}.v]
    file_type: verilogSource-2005
  waivers:
    files: [{top}.vlt]
    file_type: vlt
  constraints:
    files: [{top}.sdc]
    file_type: SDC
"""
_TESTBENCH = """  testbench:
    files:
      - {bench}
{vectors}
    file_type: verilogSource-2005
"""
_TARGETS = """
targets:
  default:
    filesets: [rtl]
    toplevel: {top}
  lint:
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wall]
    filesets: [waivers, rtl]
    toplevel: {top}
  synth:
    flow: generic
    flow_options:
      tool: yosys
      arch: ecp5
      output_format: json
    filesets: [rtl, constraints]
    toplevel: {top}
"""
_SIMULATION = """  sim:
    flow: sim
    flow_options:
      tool: icarus
      iverilog_options: [-g2005]
    filesets: [rtl, testbench]
    toplevel: {bench}
"""


def core_file(top: str, config: EngineConfig, testbench: Sequence[str] = ()) -> str:
    """Return the core file of a top module, beside whose Verilog, waivers and constraints it lies.

    The targets are ``lint`` (Verilator), ``synth`` (Yosys, for ECP5) and, with a testbench, ``sim``
    (Icarus Verilog).

    Parameters
    ----------
    testbench : paths of a testbench's files from the core file's folder: its Verilog, which has the
        name of its top module, and the files that it reads
    """
    text = _START.format(top=top, version=__version__, name=config.name, digest=config.digest())
    targets = _TARGETS.format(top=top)
    if testbench:
        bench, *vectors = testbench
        copied = [f"      - {path}: {{file_type: user, copyto: {path}}}" for path in vectors]
        text += _TESTBENCH.format(bench=bench, vectors="\n".join(copied))
        targets += _SIMULATION.format(bench=PurePosixPath(bench).stem)
    return text + targets
