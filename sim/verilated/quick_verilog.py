"""Verilog of which Verilator makes a quicker model: registers with enables, a cycle per clock edge.

In generated Verilog a register's next value is an expression that ends in the register itself where
nothing changes, and Verilator computes it in every cycle. Yosys finds enables and resets in these
expressions; then Verilator skips the rest while a register is not enabled.
"""

from __future__ import annotations

from kvtq_hw.contract.files import scratch_folder
from rtl.yosys import run_yosys, yosys_version

__all__ = ["quick_verilog", "recipe"]

_PASSES = (
    "proc -norom",
    # a memory's write enable is one bit again; else each bit would be written by itself
    "opt_expr",
    "opt_reduce",
    "opt_expr -mux_bool",
    "memory_collect",
    "opt_clean",
    "opt_dff",
    "opt_expr",
    "opt_merge -nomux",
    "opt_clean -purge",
)
_RISING, _EITHER = "always @(posedge clk)", "always @(edge clk)"


def recipe() -> str:
    """Return what shapes the text besides the Verilog, for the keys of build caches."""
    return "\0".join((yosys_version(), *_PASSES, _EITHER))


def quick_verilog(verilog: str, top: str) -> str:
    """Return Verilog that does the same as `rtl.verilog.emit`'s text, with a cycle per clock edge.

    Either edge of ``clk`` is an active one, so a cycle takes one evaluation of the model.

    Raises
    ------
    rtl.yosys.YosysError
        When Yosys rejects the text.
    """
    with scratch_folder() as directory:
        (directory / "design.v").write_text(verilog, encoding="utf-8")
        passes = ["read_verilog -sv design.v", f"hierarchy -check -top {top}", *_PASSES]
        run_yosys([*passes, "write_verilog -noattr quick.v"], directory)
        text = (directory / "quick.v").read_text(encoding="utf-8")
    return text.replace(_RISING, _EITHER)
