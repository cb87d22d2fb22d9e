"""Kinds of reset in generated Verilog: all do the same, and an asynchronous one needs no clock."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from bench_matrix import CONFIGS

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.host.toolchain import find_simulator
from rtl.blocks import create_block, emit_block
from rtl.manifest import manifest
from rtl.reset import Reset

TINY = CONFIGS["tiny"]
SIDE_BY_SIDE = """
module bench;
  reg clk = 0, rst = 1;
  integer cycle, moved = 0;
{registers}
{wires}
  kvtq_engine plain(.clk(clk), .rst(rst){plain});
  other_engine other(.clk(clk), .{port}({level}){other});
  initial begin
    for (cycle = 0; cycle < 3000; cycle = cycle + 1) begin
      rst = cycle < 4 || cycle % 400 > 396;
{stimulus}
      #1 clk = 1;
      #1 if (cycle > 2 && {{{plain_outputs}}} !== {{{other_outputs}}}) begin
        $display("cycle %0d differs", cycle);
        $finish;
      end
      if (cycle > 2 && {{{plain_outputs}}} !== before) moved = moved + 1;
      before = {{{plain_outputs}}};
      clk = 0;
    end
    rst = 1;  // without a clock edge
    #1 $display("%0d %b", moved, {{{plain_outputs}}} === {{{other_outputs}}});
    $finish;
  end
endmodule
"""


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
@pytest.mark.parametrize("kind", list(Reset))
def test_engines_side_by_side(kind: Reset, simulator: str, tmp_path: Path) -> None:
    """An engine of each kind answers like the usual one in every cycle, behind random inputs."""
    ports = manifest(create_block("engine", TINY), "engine", TINY, [])["ports"][2:]
    inputs = {port["name"]: port["width"] for port in ports if port["direction"] == "in"}
    outputs = {port["name"]: port["width"] for port in ports if port["direction"] == "out"}

    def connected(design: str) -> str:
        pins = [f".{name}(i_{name})" for name in inputs]
        return "".join(f", {pin}" for pin in [*pins, *(f".{o}({design}_{o})" for o in outputs)])

    def random(name: str, width: int) -> str:
        words = ", ".join(["$random"] * -(-width // 32))
        return f"      i_{name} = {{{words}}};"

    registers = {f"i_{name}": width for name, width in inputs.items()}
    registers["before"] = sum(outputs.values())
    text = SIDE_BY_SIDE.format(
        registers="\n".join(f"  reg [{width - 1}:0] {name};" for name, width in registers.items()),
        wires="\n".join(
            f"  wire [{width - 1}:0] {design}_{name};"
            for design in ("plain", "other")
            for name, width in outputs.items()
        ),
        plain=connected("plain"),
        other=connected("other"),
        port=kind.port,
        level="rst" if kind.active == "high" else "!rst",
        stimulus="\n".join(random(name, width) for name, width in inputs.items()),
        plain_outputs=", ".join(f"plain_{name}" for name in outputs),
        other_outputs=", ".join(f"other_{name}" for name in outputs),
    )
    (tmp_path / "bench.v").write_text(text, "utf-8")
    (tmp_path / "plain.v").write_text(emit_block("engine", TINY), "utf-8")
    other = emit_block("engine", TINY, "other", reset=kind, initial_values=False)
    (tmp_path / "other.v").write_text(other, "utf-8")
    command = ["iverilog", "-g2005", "-o", "bench.vvp", "bench.v", "plain.v", "other.v"]
    environment = find_simulator(simulator).environment()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    done = subprocess.run(
        ["vvp", "-n", "bench.vvp"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "differs" not in done.stdout
    moved, same = done.stdout.split()
    assert int(moved) > 100, "outputs must change for the comparison to say anything"
    assert same == str(int(kind.synchronous)), "an asynchronous reset acts without a clock edge"


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
def test_generate_says_which_reset(simulator: str, tmp_path: Path) -> None:
    assert run(["generate", "--preset", "tiny", "--reset", "async-low", "-o", str(tmp_path)]) == 0
    described = json.loads((tmp_path / "kvtq_tiny_engine.json").read_text("utf-8"))
    assert described["reset"] == {"port": "rst_n", "active": "low", "synchronous": False}
    assert [port["name"] for port in described["ports"][:2]] == ["clk", "rst_n"]
    for block in ("engine", "accelerator"):
        name = f"kvtq_tiny_{block}"
        text = (tmp_path / f"{name}.v").read_text("utf-8")
        assert re.search(rf"^module {name}\(\s*clk,\s*rst_n,", text, re.MULTILINE)
        assert "always @(posedge clk, posedge rst)" in text
        done = subprocess.run(
            ["verilator", "--lint-only", "-Wall", "--quiet", f"{name}.vlt", f"{name}.v"],
            cwd=tmp_path,
            env=find_simulator(simulator).environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
