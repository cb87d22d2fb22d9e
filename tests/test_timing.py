"""Longest paths: OpenSTA and abc on known designs, and what happens without them."""

import json
from pathlib import Path

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates import timing
from kvtq_hw.estimates.blocks import Part
from kvtq_hw.estimates.liberty import Liberty, load_liberty, shipped_liberty
from kvtq_hw.estimates.synthesis import Mapping
from kvtq_hw.estimates.timing import LongestPath, measure_timing
from kvtq_hw.host.results import ResultStore
from kvtq_hw.host.toolchain import Tool
from rtl.verilog import emit_rtlil

TINY = load_config("tiny")


class Chain(wiring.Component):
    """Parity of `width` registered bits, registered: the path grows with the logarithm."""

    def __init__(self, width: int) -> None:
        super().__init__({"i": In(width), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        first = Signal.like(self.i, reset_less=True)
        last = Signal(reset_less=True)
        m.d.sync += [first.eq(self.i), last.eq(first.xor())]
        m.d.comb += self.o.eq(last)
        return m


def chain(width: int, block: str = "engine") -> Part:
    return Part(block, "chain", 1, emit_rtlil(Chain(width), "chain"))


@pytest.fixture
def parts(monkeypatch):
    """Chains of 4 and 64 bits in the place of an engine."""
    chosen = [chain(4, "packer"), chain(64)]
    monkeypatch.setattr(timing, "engine_parts", lambda config: chosen)


def test_opensta(parts, analyser, sky130_liberty, monkeypatch, tmp_path) -> None:
    liberty, store = load_liberty(sky130_liberty), ResultStore(tmp_path / "results.sqlite")
    monkeypatch.setattr(timing, "engine_parts", lambda config: [chain(4, "packer")])
    short = measure_timing(TINY, liberty, analyser, store)
    monkeypatch.setattr(timing, "engine_parts", lambda config: [chain(64)])
    long = measure_timing(TINY, liberty, analyser, store)
    assert list(long) == ["engine", "total"]
    assert long["total"] == long["engine"]
    # a flip-flop's delay and set-up time alone are longer than 300 ps
    assert 300 < short["total"].delay_ps < long["total"].delay_ps < 5000
    assert long["total"].tool == "opensta"
    assert long["total"].fmax_mhz == round(1e6 / long["total"].delay_ps, 2)
    # again from the store, without the tool
    monkeypatch.setattr(timing, "_run", None)
    assert measure_timing(TINY, liberty, analyser, store) == long


def test_netlist_in_what_opensta_reads(tmp_path) -> None:
    lines = ["module top(input signed [1:0] i, output [1:0] o);", "wire signed [2:0] a;"]
    lines += ["  assign { a[2], a[0] } = i;", "  assign o = { a[0], a[2] };", "endmodule"]
    (tmp_path / "mapped.v").write_text("\n".join(lines))
    timing._write_plain(tmp_path, "top")
    plain = (tmp_path / "netlist.v").read_text()
    assert "signed" not in plain and "assign {" not in plain and "assign o" in plain


def test_abc_without_opensta(parts, sky130_liberty, tmp_path) -> None:
    liberty = load_liberty(sky130_liberty)
    paths = measure_timing(TINY, liberty, None, ResultStore(tmp_path / "results.sqlite"))
    assert {path.tool for path in paths.values()} == {"abc"}
    assert 0 < paths["packer"].delay_ps < paths["engine"].delay_ps
    assert paths["total"] == paths["engine"]


@pytest.mark.parametrize("tool", ["abc", "opensta"])
def test_each_block_has_its_longest_part_and_the_total_all_of_them(
    tool: str, monkeypatch, tmp_path
) -> None:
    """On stand-ins of the tools: a part's delay is its length, the whole engine's that of all."""
    texts = {"short": "s", "long": "l" * 40, "top": "t" * 9}
    parts = [Part("packer", name, 1, texts[name]) for name in ("long", "short")]
    parts.append(Part("engine", "top", 1, texts["top"]))
    monkeypatch.setattr(Liberty, "has_timing", True)
    monkeypatch.setattr(timing, "engine_parts", lambda config: parts)

    def mapped(part: Part, liberty: Liberty, store: ResultStore, clock_mhz: int) -> Mapping:
        assert clock_mhz == 250
        return Mapping({}, 0, 0, 0, 0, len(part.text))

    def analyse(top: str, netlist: str, keys: list[str], *rest: object) -> LongestPath:
        return LongestPath(len(netlist), top, " ".join(keys), "opensta")

    monkeypatch.setattr(timing, "map_part", mapped)
    monkeypatch.setattr(timing, "mapped_netlist", lambda part, *rest: part.text)
    monkeypatch.setattr(timing, "mapping_key", lambda part, *rest: part.top)
    monkeypatch.setattr(timing, "_analyse", analyse)
    analyser = Tool("opensta", tmp_path, "2.0") if tool == "opensta" else None
    store = ResultStore(tmp_path / "results.sqlite")
    found = measure_timing(TINY, shipped_liberty(), analyser, store, 250)
    assert list(found) == ["packer", "engine", "total"]
    if tool == "abc":
        assert found["packer"] == found["total"] == LongestPath(40, "", "", "abc")
    else:
        assert found["packer"] == LongestPath(40, "long", "long", "opensta")
        assert found["engine"] == LongestPath(9, "top", "top", "opensta")
        assert found["total"] == LongestPath(52, "top", "long short top", "opensta")


def test_shipped_library_has_no_delays(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^library: the shipped library holds areas alone; "):
        measure_timing(TINY, shipped_liberty(), None, ResultStore(tmp_path / "results.sqlite"))


def test_a_failing_analyser_is_one_line(tmp_path: Path) -> None:
    tool = tmp_path / "sta"
    tool.write_text("#!/bin/sh\necho 'Error: no such thing'\n")
    tool.chmod(0o755)
    with pytest.raises(UserError, match=r"^opensta: timing analysis failed: Error: no such thing$"):
        timing._run(Tool("opensta", tool, "2.0"), tmp_path)


def test_command(parts, sky130_liberty, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("KVTQ_TOOLS", str(tmp_path))
    file = tmp_path / "timing.json"
    arguments = ["timing", "--preset", "tiny", "--liberty", str(sky130_liberty)]
    assert run([*arguments, "--json", str(file)]) == 0
    assert "abc, combinational logic alone" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["paths"]["total"]["tool"] == "abc"
    assert LongestPath(2000.0, "", "", "abc").as_dict()["fmax_mhz"] == 500.0
