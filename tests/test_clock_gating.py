"""Clock gates: which flip-flops get one, what the netlist answers, what the clock then costs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates import synthesis
from kvtq_hw.estimates.area import measure_area
from kvtq_hw.estimates.blocks import Part
from kvtq_hw.estimates.gate_simulation import Gates, simulate
from kvtq_hw.estimates.gates import Mapped, link
from kvtq_hw.estimates.liberty import Liberty, load_liberty, shipped_liberty
from kvtq_hw.estimates.liberty_format import parse_liberty
from kvtq_hw.estimates.power import _energies
from kvtq_hw.estimates.synthesis import map_part, mapped_netlist, mapping_key
from kvtq_hw.host.results import ResultStore
from rtl.pipeline import Pipeline
from rtl.verilog import emit_rtlil

LIBRARY = shipped_liberty()
UNGATED = load_liberty(None, gating=False)
PREFIX = "sky130_fd_sc_hd__"
GATE = f"{PREFIX}dlclkp_4"


INITS = {"set": -1, "cleared": 0}


class Registers(wiring.Component):
    """Registers that take `d` with `en`: set by reset, cleared by it, and without reset."""

    def __init__(self, width: int = 5) -> None:
        names = (*INITS, "plain")
        super().__init__(
            {"d": In(width), "en": In(1)} | {f"{name}_q": Out(width) for name in names}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        registers = {
            name: Signal(len(self.d), name=name, init=init & (1 << len(self.d)) - 1)
            for name, init in INITS.items()
        }
        registers["plain"] = Signal(len(self.d), name="plain", reset_less=True)
        for name, register in registers.items():
            with m.If(self.en):
                m.d.sync += register.eq(self.d)
            m.d.comb += getattr(self, f"{name}_q").eq(register)
        return m


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ResultStore:
    return ResultStore(tmp_path_factory.mktemp("estimates") / "results.sqlite")


def part_of(component: wiring.Component) -> Part:
    return Part("engine", "design", 1, emit_rtlil(component, "design"))


def netlist_of(component: wiring.Component, store: ResultStore, library: Liberty) -> Mapped:
    return link([mapped_netlist(part_of(component), library, store)], "design", library)


def bits(values: list[int], width: int = 1) -> NDArray[np.uint8]:
    return (np.array(values)[:, None] >> np.arange(width) & 1).astype(np.uint8)


# --- which flip-flops get a gate ------------------------------------------------------------------


def kinds_of(width: int, library: Liberty, store: ResultStore) -> dict[str, int]:
    mapping = map_part(part_of(Registers(width)), library, store)
    kinds = {name.removeprefix(PREFIX): count for name, count in mapping.cells.items()}
    assert mapping.flip_flops == kinds["dfxtp_1"] == 3 * width
    return kinds


def test_flip_flops_of_an_enable_share_a_gate(store) -> None:
    """One gate for registers without reset, one for those whose enable the reset opens as well."""
    kinds = kinds_of(5, LIBRARY, store)
    assert kinds["dlclkp_4"] == 2
    assert not any("mux" in kind for kind in kinds)


def test_few_flip_flops_have_multiplexers(store) -> None:
    """A width of one: two bits with reset, one without."""
    kinds = kinds_of(1, LIBRARY, store)
    assert "dlclkp_4" not in kinds


def test_without_gating_there_are_no_gates(store) -> None:
    kinds = kinds_of(5, UNGATED, store)
    assert not any("clk" in kind for kind in kinds)
    part = part_of(Registers())
    assert mapping_key(part, LIBRARY) != mapping_key(part, UNGATED)
    assert LIBRARY.digest == UNGATED.digest and LIBRARY.key != UNGATED.key


def test_areas_with_and_without_gates_are_stored_apart(store) -> None:
    from kvtq_hw.contract.config import load_config

    config = load_config("tiny")
    gated, plain = (
        measure_area(config, "query_buffer", library, store) for library in (LIBRARY, UNGATED)
    )
    assert (gated.clock_gate, plain.clock_gate) == (GATE, None)
    assert gated.total.um2 < plain.total.um2
    for library, first in ((LIBRARY, gated), (UNGATED, plain)):
        assert measure_area(config, "query_buffer", library, store) == first


# --- the netlist is the RTL -----------------------------------------------------------------------


def stimulus_of_every_step(width: int) -> dict[str, list[int]]:
    """A reset; then, from each value of the registers, every reset, enable and data."""
    ports: dict[str, list[int]] = {"rst": [1], "en": [0], "d": [0]}
    values = range(1 << width)
    for value, rst, en, d in itertools.product(values, (0, 1), (0, 1), values):
        for port, level in (("rst", (0, rst)), ("en", (1, en)), ("d", (value, d))):
            ports[port] += level
    return ports


def registers_of(ports: dict[str, list[int]], width: int) -> dict[str, list[int]]:
    """What the registers hold in each cycle."""
    mask = (1 << width) - 1
    found = {}
    for name, init in (INITS | {"plain": None}).items():
        value, row = 0, []
        for rst, en, d in zip(ports["rst"], ports["en"], ports["d"], strict=True):
            row.append(value)
            if rst and init is not None:
                value = init & mask
            elif en:
                value = d
        found[f"{name}_q"] = row
    return found


def answer(gates: Gates, ports: dict[str, list[int]], expected: dict[str, list[int]], width: int):
    inputs = {name: bits(row, width if name == "d" else 1) for name, row in ports.items()}
    outputs = {name: bits(row, width) for name, row in expected.items()}
    return simulate(gates, inputs, outputs, first=1)


@pytest.mark.parametrize("library", [LIBRARY, UNGATED], ids=["gated", "ungated"])
def test_netlist_is_the_rtl_from_reset_on(library: Liberty, store) -> None:
    """Every step from every state: reset comes through with and without the enable."""
    ports = stimulus_of_every_step(5)
    gates = netlist_of(Registers(), store, library).gates
    assert len(gates.clocks) == (2 if library.clock_gate else 0)
    answer(gates, ports, registers_of(ports, 5), 5)


def test_a_reset_lost_under_the_enable_is_found(tmp_path, monkeypatch) -> None:
    """As in Yosys's issue 5812: a reset that ought to act without the enable waits for it."""
    commands = synthesis._gating_commands

    def losing(liberty: Liberty) -> list[str]:
        legalize, *others = commands(liberty)
        wrong = [f"chtype -set $_SDFFCE_PP{bit}P_ t:$_SDFFE_PP{bit}P_" for bit in "01"]
        return [legalize.replace("SDFFCE", "SDFFE"), *wrong, *others]

    monkeypatch.setattr(synthesis, "_gating_commands", losing)
    gates = netlist_of(Registers(), ResultStore(tmp_path / "results.sqlite"), LIBRARY).gates
    assert gates.clocks
    ports = stimulus_of_every_step(5)
    with pytest.raises(ValueError, match=r"^netlist: output (set|cleared)_q differs"):
        answer(gates, ports, registers_of(ports, 5), 5)


class Stages(wiring.Component):
    """A stage of a pipeline, and beside it a part for odd numbers."""

    def __init__(self) -> None:
        both = data.StructLayout({"all": 4, "odd": 4})
        super().__init__({"i": In(stream.Signature(4)), "o": Out(stream.Signature(both))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)
        part = pipe.part(self.i.payload[0], number=self.i.payload)
        stage = pipe.stage(number=self.i.payload)
        pipe.finish(all=stage.number, odd=part.number)
        return m


def test_only_a_transfer_clocks_the_payload_of_a_pipeline(store) -> None:
    rng = np.random.default_rng(1)
    cycles = 400
    ports = {name: rng.integers(0, 2, cycles).tolist() for name in ("i__valid", "o__ready")}
    numbers = rng.integers(0, 16, cycles).tolist()
    offered, everything, odd, outputs, transfers = 0, 0, 0, [], [0, 0]
    for cycle, (valid, ready) in enumerate(zip(*ports.values(), strict=True)):
        outputs.append((offered, everything | odd << 4))
        if ready or not offered:
            offered = valid
            if valid:
                everything = numbers[cycle]
                odd = everything if everything & 1 else odd
                transfers[0] += 1
                transfers[1] += everything & 1
    mapped = netlist_of(Stages(), store, LIBRARY)
    inputs = {name: bits(row) for name, row in ports.items()}
    inputs |= {"rst": bits([0] * cycles), "i__payload": bits(numbers, 4)}
    expected = {
        "o__valid": bits([valid for valid, _ in outputs]),
        "o__payload": bits([payload for _, payload in outputs], 8),
    }
    toggles = simulate(mapped.gates, inputs, expected)
    clocks = sorted(int(toggles[clock]) for clock, _ in mapped.gates.clocks)
    assert clocks == sorted(2 * count for count in transfers)


# --- what the clock costs -------------------------------------------------------------------------

BEHIND = f"""
module top(input clk, input d, input en, output q, output p);
  wire gated;
  {GATE} g (.CLK(clk), .GATE(en), .GCLK(gated));
  {PREFIX}dfxtp_1 a (.CLK(gated), .D(d), .Q(q));
  {PREFIX}dfxtp_1 b (.CLK(clk), .D(d), .Q(p));
endmodule
"""


def test_a_gated_clock_counts_in_cycles_with_an_open_gate() -> None:
    mapped = link([BEHIND], "top", LIBRARY)
    stimulus = {"d": bits([1, 0, 1, 0, 0]), "en": bits([1, 0, 0, 1, 0])}
    expected = {"q": bits([0, 1, 1, 1, 0]), "p": bits([0, 1, 0, 1, 0])}
    toggles = simulate(mapped.gates, stimulus, expected).tolist()
    ((clock, _),) = mapped.gates.clocks
    assert toggles[clock] == 2 * 2
    power = _energies(mapped, toggles, 5, LIBRARY, {})["engine"]
    # C of CLK: 4.878 fF of the gate and 1.794 fF of the plain flip-flop, five cycles; two cycles
    # of the gated one
    assert power.clock_pj == pytest.approx((5 * (0.004878 + 0.001794) + 2 * 0.001794) * 1.8**2)
    assert power.switching_pj == 0  # what hangs on the gated clock is no net of its own
    assert power.toggles == sum(toggles[mapped.gates.ports[name][0]] for name in "qp")
    late = simulate(mapped.gates, stimulus, expected, first=1).tolist()
    assert late[clock] == 2


def test_inside_a_gate_its_clock_counts_always_and_its_output_when_open() -> None:
    def power(energy: int) -> str:
        tables = (f'{way}_power (scalar) {{ values ("{energy}"); }}' for way in ("rise", "fall"))
        return f"internal_power () {{ {' '.join(tables)} }}"

    text = f"""library (l) {{ nom_voltage : 2.0; capacitive_load_unit (1, pf); time_unit : "1ns";
  cell (icg) {{ area : 1; clock_gating_integrated_cell : "latch_posedge"; dont_use : true;
    pin (C) {{ direction : input; clock_gate_clock_pin : true; {power(2)} }}
    pin (E) {{ direction : input; clock_gate_enable_pin : true; }}
    pin (Z) {{ direction : output; clock_gate_out_pin : true; {power(10)} }} }}
  cell (ff) {{ area : 1; ff (IQ, IQN) {{ clocked_on : "C"; next_state : "D"; }}
    pin (C) {{ direction : input; capacitance : 1; {power(100)} }}
    pin (D) {{ direction : input; }} pin (Q) {{ direction : output; function : "IQ"; }} }} }}"""
    library = Liberty("x", text, parse_liberty(text))
    assert library.clock_gate is not None and library.clock_gate.cell == "icg"
    design = """
module top(input clk, input en, output q);
  wire gated;
  icg g (.C(clk), .E(en), .Z(gated));
  ff a (.C(gated), .D(1'b0), .Q(q));
endmodule
"""
    mapped = link([design], "top", library)
    toggles = simulate(mapped.gates, {"en": bits([0, 1, 1, 0])}, {}).tolist()
    power = _energies(mapped, toggles, 4, library, {})["engine"]
    assert power.internal_pj == pytest.approx(8 * 2 + 4 * 10 + 4 * 100)
    assert power.clock_pj == pytest.approx(4 * 1.0 * 2.0**2 / 2)


def test_a_gate_behind_a_gate_is_refused() -> None:
    text = f"""
module top(input clk, input en, output q);
  wire a, b;
  {GATE} g (.CLK(clk), .GATE(en), .GCLK(a));
  {GATE} h (.CLK(a), .GATE(en), .GCLK(b));
  {PREFIX}dfxtp_1 f (.CLK(b), .D(en), .Q(q));
endmodule
"""
    with pytest.raises(UserError, match=r"^power: h is a clock gate behind another one$"):
        link([text], "top", LIBRARY)


# --- the library ----------------------------------------------------------------------------------


def test_the_strongest_gate_is_taken() -> None:
    assert LIBRARY.clock_gate is not None and LIBRARY.clock_gate.cell == GATE
    assert UNGATED.clock_gate is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("latch_posedge", "latch_negedge"),
        ("clock_gate_enable_pin : true", "clock_gate_test_pin : true"),
        ("pin (GATE) {\n      clock", 'pin ("G:1") {\n      clock'),
    ],
    ids=["falling edge", "no enable", "a name that no command can have"],
)
def test_a_library_without_a_usable_gate_clocks_everything(old, new, store, tmp_path) -> None:
    file = tmp_path / "none.lib"
    file.write_text(LIBRARY.text.replace(old, new))
    library = load_liberty(file)
    assert library.gating and library.clock_gate is None
    assert not any("clk" in kind for kind in kinds_of(5, library, store))


def test_an_input_beside_clock_and_enable_makes_no_gate() -> None:
    text = LIBRARY.text.replace("pin (GATE) {", "pin (SCE) { direction : input; }\n pin (GATE) {")
    assert Liberty("x", text, parse_liberty(text)).clock_gate is None


def test_gates_of_another_process(tmp_path) -> None:
    """What is not called as sky130's is found by its attributes."""
    renamed = LIBRARY.text.replace("dlclkp", "icg").replace("(GCLK)", "(Z)")
    library = replace(LIBRARY, source="x", text=renamed, root=parse_liberty(renamed))
    store = ResultStore(tmp_path / "results.sqlite")
    assert map_part(part_of(Registers()), library, store).cells[f"{PREFIX}icg_4"] == 2
