"""Paths that pass through no register: none from a port of the accelerator to another."""

from __future__ import annotations

import pytest
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from bench_matrix import FOLDER, TINY

from kvtq_hw.contract.config import load_config, preset_names
from rtl.blocks import emit_block
from rtl.combinational_paths import combinational_paths
from rtl.streams import SkidBuffer
from rtl.verilog import emit
from sim.verilated.verilog_cache import cached_verilog


@pytest.mark.parametrize("preset", preset_names())
def test_no_output_of_the_accelerator_sees_an_input(preset: str) -> None:
    """AXI allows no such path (IHI 0022, A3.1.1; IHI 0051, 2.7.1), and so `irq` has none either."""
    verilog = cached_verilog("accelerator", load_config(preset), FOLDER / "verilog")
    assert combinational_paths(verilog, "kvtq_accelerator") == set()


@pytest.mark.parametrize(
    ("ready", "found"),
    [
        (lambda buffer, full: ~full & buffer.i.valid, "valid"),
        (lambda buffer, full: ~full | buffer.o.ready, "bready"),
    ],
    ids=["waits for valid", "passes ready on"],
)
def test_a_path_through_a_skid_buffer_is_found(ready, found, monkeypatch) -> None:
    class Leaking(SkidBuffer):
        def elaborate(self, platform: object) -> Module:
            m = Module()
            full = Signal()
            m.d.sync += full.eq(self.i.valid & ~self.o.ready)
            m.d.comb += [
                self.o.valid.eq(self.i.valid),
                self.o.payload.eq(self.i.payload),
                self.i.ready.eq(ready(self, full)),
            ]
            return m

    monkeypatch.setattr("rtl.control.SkidBuffer", Leaking)
    paths = combinational_paths(emit_block("control", TINY), "kvtq_control")
    expected = {f"axi_aw{found}" if found == "valid" else f"axi_{found}"}
    assert expected <= {source for source, output in paths if output == "axi_awready"}


class Design(wiring.Component):
    """Ports that see each other, or do not, through every kind of cell that matters."""

    def __init__(self) -> None:
        inputs = {name: In(4) for name in ("a", "b", "c", "d")}
        outputs = ("swapped", "chosen", "added", "registered", "buffered", "looked_up", "constant")
        super().__init__(inputs | {name: Out(4) for name in outputs})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffered = buffered = SyncFIFOBuffered(width=4, depth=4)
        m.submodules.looked_up = looked_up = SyncFIFO(width=4, depth=4)
        bits = Signal(8)
        m.d.comb += [
            bits.eq(Cat(self.a, self.b) ^ 0x5A),
            self.swapped.eq(Cat(bits[4:6], bits[6:])),  # b alone, out of a word with a
            self.added.eq(self.a + self.c),
            buffered.w_data.eq(self.a),
            buffered.w_en.eq(1),
            buffered.r_en.eq(self.b[0]),
            self.buffered.eq(buffered.r_data),
            looked_up.w_data.eq(self.a),
            looked_up.w_en.eq(self.c[0]),
            looked_up.r_en.eq(1),
            self.looked_up.eq(looked_up.r_data ^ self.d),
            self.constant.eq(5),
        ]
        with m.If(self.d[0]):
            m.d.comb += self.chosen.eq(self.c)
        m.d.sync += self.registered.eq(self.a)
        return m


def test_paths_are_those_of_the_design() -> None:
    assert combinational_paths(emit(Design(), "design", ""), "design") == {
        ("b", "swapped"),
        ("c", "chosen"),
        ("d", "chosen"),
        ("a", "added"),
        ("c", "added"),
        ("d", "looked_up"),
    }


def test_a_memory_that_is_read_at_once_is_a_path() -> None:
    verilog = """
    module top(input clk, input [1:0] a, output [7:0] now, output reg [7:0] later);
      reg [7:0] memory [3:0];
      assign now = memory[a];
      always @(posedge clk) later <= memory[a];
    endmodule
    """
    assert combinational_paths(verilog, "top") == {("a", "now")}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("assign o = i | o;", r"^bit \d+ of the netlist sees itself$"),
        ("always @* if (i) o = j;", r"of type \$dlatch is neither logic nor a known register$"),
    ],
    ids=["loop", "latch"],
)
def test_what_is_no_netlist_of_one_clock(body: str, message: str) -> None:
    kind = "reg" if "always" in body else "wire"
    verilog = f"module top(input i, input j, output {kind} o);\n{body}\nendmodule\n"
    with pytest.raises(ValueError, match=message):
        combinational_paths(verilog, "top")
