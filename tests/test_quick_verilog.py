"""The Verilog that is compiled: enables are found, memories stay whole, every clock is replaced."""

from __future__ import annotations

import re

from bench_matrix import FOLDER, TINY

from sim.verilated.quick_verilog import quick_verilog
from sim.verilated.verilog_cache import cached_verilog


def test_registers_have_enables_and_memories_are_written_as_words():
    verilog = cached_verilog("accelerator", TINY, FOLDER / "verilog")
    quick = quick_verilog(verilog, "kvtq_accelerator")
    clocked = verilog.count("always @(posedge clk)")
    assert "posedge" not in quick
    # a register without changes is dropped, and one whose fields have several enables is split
    assert clocked < 1.1 * quick.count("always @(edge clk)")
    enabled = re.findall(r"always @\(edge clk\)\n    if \(\w+\) \w+ <= .*;\n(?!    else)", quick)
    assert len(enabled) > clocked / 3
    assert not re.search(r"\w\[\w+\]\[0:0\] <=", quick)
