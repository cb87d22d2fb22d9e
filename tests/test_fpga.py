"""FPGA resources: known designs in each family, and the command."""

import json

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.cli import run
from kvtq_hw.config import load_config
from kvtq_hw.estimates import fpga
from kvtq_hw.estimates.fpga import FAMILIES, fpga_resources
from kvtq_hw.estimates.store import EstimateStore

TINY = load_config("tiny")


class Resources(wiring.Component):
    """Of each kind what is sure to be of it: a product, a large table, 16 bits, 4-input gates."""

    a: In(16)
    b: In(16)
    address: In(11)
    product: Out(32)
    gates: Out(4)
    later: Out(16)
    word: Out(16)

    def elaborate(self, platform):
        m = Module()
        table = [40503 * i % 65536 for i in range(2048)]
        m.submodules.memory = memory = Memory(shape=16, depth=2048, init=table)
        read = memory.read_port()
        later = Signal(16, reset_less=True)
        m.d.sync += later.eq(later ^ self.a)
        m.d.comb += [
            self.product.eq(self.a * self.b),
            self.later.eq(later),
            read.addr.eq(self.address),
            read.en.eq(1),
            self.word.eq(read.data),
        ]
        for bit in range(4):
            four = self.a[bit] & self.a[bit + 4] | self.b[bit] & self.b[bit + 4]
            m.d.comb += self.gates[bit].eq(four)
        return m


@pytest.mark.parametrize("family", FAMILIES)
def test_known_design(family: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(fpga, "create_block", lambda name, config: Resources())
    store = EstimateStore(tmp_path)
    found = fpga_resources(TINY, family, "engine", store)
    # one product; 32 kbit of memory in blocks of 4, 18 or 36 kbit; 16 registers
    blocks = {"ecp5": 2, "ice40": 8, "xc7": 1}[family]
    assert (found["dsp"], found["bram"], found["ff"]) == (1, blocks, 16)
    assert 4 <= found["lut"] <= 4 + 16
    assert (found["lutram"], found["tag"]) == (0, "measured")
    monkeypatch.setattr(fpga, "_synthesize", None)  # again from the store
    assert fpga_resources(TINY, family, "engine", store) == found


def test_command(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "fpga.json"
    arguments = ["fpga", "--preset", "tiny", "--block", "packer", "--family", "ice40"]
    assert run([*arguments, "--json", str(file)]) == 0
    assert "Lattice iCE40" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["command"] == ("kvtq-hw fpga --preset tiny --block packer --family ice40")
    assert written["families"]["ice40"]["lut"] > 0
    assert written["families"]["ice40"]["dsp"] == 0


def test_unknown_family_is_one_line(capsys) -> None:
    assert run(["fpga", "--preset", "tiny", "--family", "x"]) == 1
    assert capsys.readouterr().err == (
        "kvtq-hw: error: --family: 'x' is unknown; allowed are ecp5, ice40, xc7\n"
    )
