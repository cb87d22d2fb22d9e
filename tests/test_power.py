"""Power: toggles of known circuits, energies by hand, and a captured attention by block."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_matrix import FOLDER
from tiny_model import prompt, save_tiny_model

from golden.llm.capture import load_captured
from golden.scale import decode_scale
from golden.study.job_variants import as_integers, without_zeros
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.cell_energy import CellEnergy
from kvtq_hw.estimates.gate_simulation import simulate
from kvtq_hw.estimates.gates import link
from kvtq_hw.estimates.liberty import Liberty, shipped_liberty
from kvtq_hw.estimates.liberty_format import parse_liberty
from kvtq_hw.estimates.power import _energies

LIBRARY = shipped_liberty()
PREFIX = "sky130_fd_sc_hd__"
INTEGERS = ("int8", "int4")


def bits(*values: int, width: int = 1) -> np.ndarray:
    return (np.array(values)[:, None] >> np.arange(width) & 1).astype(np.uint8)


# --- the simulation -------------------------------------------------------------------------------

# q counts up; carry is and of all
COUNTER = f"""
module top(input clk, output [1:0] q, output both);
  wire n0, n1;
  {PREFIX}inv_1 a (.A(q[0]), .Y(n0));
  {PREFIX}xor2_1 b (.A(q[0]), .B(q[1]), .X(n1));
  {PREFIX}dfxtp_1 c (.CLK(clk), .D(n0), .Q(q[0]));
  {PREFIX}dfxtp_1 d (.CLK(clk), .D(n1), .Q(q[1]));
  {PREFIX}and2_0 e (.A(q[0]), .B(q[1]), .X(both));
endmodule
"""


def test_toggles_of_a_counter() -> None:
    gates = link([COUNTER], "top", LIBRARY).gates
    cycles = 9
    wanted = {
        "q": bits(*(n % 4 for n in range(cycles)), width=2),
        "both": bits(*(n % 4 == 3 for n in range(cycles))),
    }
    toggles = simulate(gates, {"clk": bits(*[0] * cycles)}, wanted)
    low, high = gates.ports["q"]
    # an edge after each of nine cycles: the low bit changes at all, the high one at every second
    assert (toggles[low], toggles[high], toggles[gates.ports["both"][0]]) == (9, 4, 4)
    late = simulate(gates, {"clk": bits(*[0] * cycles)}, wanted, first=4)
    assert (late[low], late[high]) == (5, 2)


def test_an_output_that_differs_is_refused() -> None:
    gates = link([COUNTER], "top", LIBRARY).gates
    wanted = {"q": bits(0, 1, 2, 2, width=2), "both": bits(0, 0, 0, 1)}
    with pytest.raises(ValueError, match=r"^netlist: output q differs in cycle 3$"):
        simulate(gates, {"clk": bits(0, 0, 0, 0)}, wanted)


def test_a_flip_flop_with_enable_keeps_its_value() -> None:
    library = """library (l) { cell (hold) { area : 1;
  ff (IQ, IQ_N) { clocked_on : "CLK"; next_state : "(DE&D) | (IQ&!DE)"; }
  pin (CLK) { direction : input; clock : true; } pin (D) { direction : input; }
  pin (DE) { direction : input; } pin (Q) { direction : output; function : "IQ"; } } }"""
    text = """
module top(input clk, input d, input en, output q);
  hold a (.CLK(clk), .D(d), .DE(en), .Q(q));
endmodule
"""
    gates = link([text], "top", Liberty("x", library, parse_liberty(library))).gates
    stimulus = {"d": bits(1, 0, 1, 0, 0), "en": bits(1, 0, 0, 1, 0)}
    simulate(gates, stimulus, {"q": bits(0, 1, 1, 1, 0)})


def test_a_memory_reads_what_was_there_before_the_write() -> None:
    text = """
module top(input clk, input [1:0] ra, input en, input [1:0] wa, input [1:0] w, input we,
           output [1:0] r);
  kvtq_memory m (.RD_ADDR(ra), .RD_ARST(1'b0), .RD_CLK(clk), .RD_DATA(r), .RD_EN(en),
    .RD_SRST(1'b0), .WR_ADDR(wa), .WR_CLK(clk), .WR_DATA(w), .WR_EN({we, we}));
endmodule
"""
    gates = link([text], "top", LIBRARY).gates
    stimulus = {
        "ra": bits(1, 1, 1, 2, 2, width=2),
        "en": bits(1, 1, 1, 0, 1),
        "wa": bits(1, 1, 2, 0, 0, width=2),
        "w": bits(3, 2, 1, 0, 0, width=2),
        "we": bits(1, 1, 1, 0, 0),
    }
    toggles = simulate(gates, stimulus, {"r": bits(0, 0, 3, 2, 2, width=2)})
    # 0 -> 3 -> 2 -> 1
    assert [toggles[net] for net in gates.ports["r"]] == [3, 2]


def test_a_loop_is_refused() -> None:
    text = f"""
module top(output q);
  wire n;
  {PREFIX}inv_1 a (.A(q), .Y(n));
  {PREFIX}inv_1 b (.A(n), .Y(q));
endmodule
"""
    with pytest.raises(UserError, match=r"^power: the netlist has a combinational loop$"):
        link([text], "top", LIBRARY)


# --- energies -------------------------------------------------------------------------------------


def test_energy_of_a_net_and_of_a_clock_by_hand() -> None:
    text = f"""
module top(input clk, input i, output q);
  wire n;
  {PREFIX}inv_1 \\block.a (.A(i), .Y(n));
  {PREFIX}dfxtp_1 c (.CLK(clk), .D(n), .Q(q));
endmodule
"""
    mapped = link([text], "top", LIBRARY)
    stimulus = {"i": bits(0, 1, 0, 1, 0, 1)}
    toggles = simulate(mapped.gates, stimulus, {})
    blocks = _energies(mapped, toggles.tolist(), 6, LIBRARY, {"block": "packer"})
    assert blocks["packer"].toggles == 6
    # C of dfxtp_1's D 1.678 fF, of its CLK 1.794 fF; 1.8 V; two changes a cycle
    assert blocks["packer"].switching_pj == pytest.approx(6 * 0.001678 * 1.8**2 / 2)
    assert blocks["packer"].clock_pj == blocks["packer"].internal_pj == 0
    assert blocks["engine"].clock_pj == pytest.approx(6 * 0.001794 * 1.8**2)
    assert blocks["engine"].switching_pj == 0  # nothing hangs on q


TABLES = """
library (l) {
  nom_voltage : 2.0; capacitive_load_unit (1000, ff); time_unit : "1ns";
  power_lut_template (one) { variable_1 : input_transition_time; index_1 ("0, 0.1"); }
  power_lut_template (two) {
    variable_1 : input_transition_time; variable_2 : total_output_net_capacitance;
    index_1 ("0, 0.1"); index_2 ("0, 1");
  }
  cell (inv) {
    area : 1;
    pin (A) {
      direction : input; capacitance : 0.5;
      internal_power () { rise_power (one) { values ("1, 3"); } }
    }
    pin (Y) {
      direction : output; function : "!A";
      internal_power () {
        related_pin : "A"; when : "B";
        rise_power (two) { values ("0, 10", "2, 12"); }
        fall_power (two) { values ("1, 1", "1, 1"); }
      }
      internal_power () {
        related_pin : "A"; when : "!B";
        rise_power (scalar) { values ("8"); }
        fall_power (scalar) { values ("0"); }
      }
    }
  }
}
"""


def test_internal_energies_by_hand() -> None:
    energy = CellEnergy(Liberty("x", TABLES, parse_liberty(TABLES)))
    assert (energy.voltage, energy.capacitance("inv", "A")) == (2.0, 0.5)
    assert energy.switching(0.5) == 1.0
    # slew 0.05 is in the middle; fall has no table
    assert energy.internal("inv", "A") == pytest.approx((2 + 0) / 2)
    # load 0.25: rise (0+2)/2 + 0.25 * 10 = 3.5, fall 1; the other condition (8 + 0) / 2
    assert energy.internal("inv", "Y", 0.25) == pytest.approx(((3.5 + 1) / 2 + 4) / 2)
    assert energy.internal("inv", "Y", 7) == pytest.approx(((11 + 1) / 2 + 4) / 2)


def test_without_a_voltage_it_is_one_line() -> None:
    text = TABLES.replace("nom_voltage : 2.0;", "")
    energy = CellEnergy(Liberty("x", text, parse_liberty(text)))
    with pytest.raises(UserError, match=r"^library 'x' has no nom_voltage$"):
        energy.switching(1.0)


# --- a captured attention -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("power")
    model = save_tiny_model(folder / "model")
    options = ["--preset", "tiny", "--model", str(model), "--prompt", prompt(20)]
    options += ["--code", "balanced:3/2,sinks=2,window=4"]
    assert run(["capture", *options, "-o", str(folder / "out")]) == 0
    (file,) = (folder / "out").iterdir()
    return file


@pytest.mark.parametrize("cache_format", INTEGERS)
def test_integers_are_rounded_from_the_vectors_themselves(captured, cache_format) -> None:
    job = load_captured(captured)
    other = as_integers(job, cache_format)
    config = other.config
    assert config.cache_format == cache_format and torch.equal(other.golden(), other.expected)
    for name in ("key", "value"):
        exact, integers = getattr(job, f"{name}_vectors"), getattr(other, f"{name}s")
        scale = decode_scale(config, integers.fraction, integers.exponent)
        found = (integers.digits.long() * scale[..., None])[:, 0]
        assert ((found - exact).abs() * 2 <= scale).all()
        # the whole range is used: the scale has few bits, and is rounded up
        assert (integers.digits.abs().amax(-1) > config.element_max // 2)[exact.any(-1)].all()
    # values have more levels than two digits: magnitudes 0 to 4
    levels = [len(set(row.tolist())) for row in other.values.digits[:, 0].abs()]
    assert max(levels) > 5
    assert other.value_exponent == int(other.values.exponent.max())


def test_integers_come_closer_to_unrounded_attention_than_digits(captured) -> None:
    job = load_captured(captured)
    config, (digits, int8, int4) = job.config, (job, *(as_integers(job, x) for x in INTEGERS))
    queries = job.queries.values[:, 0].double()
    octaves = -config.score_fraction_bits - job.queries.exponent.double()
    scores = queries @ job.key_vectors.double().T * octaves.exp2()
    exact = (scores * math.log(2)).softmax(-1) @ job.value_vectors.double()

    def error(found) -> float:
        unit = found.value_exponent + config.scale_fraction_bits - config.output_fraction_bits
        return float((found.expected * 2.0**unit - exact).norm() / exact.norm())

    assert error(int8) < 0.02 < error(digits) and error(int8) < error(int4) < error(digits)


def test_integers_of_an_attention_of_lanes_with_several_planes(captured) -> None:
    job = load_captured(captured)
    planes = {"key_planes_per_cycle": 3, "value_planes_per_cycle": 2}
    several = dataclasses.replace(job, config=job.config.replace(**planes))
    assert as_integers(several, "int8").config == as_integers(job, "int8").config


def test_without_zeros_nothing_else_changes(captured) -> None:
    job = load_captured(captured)
    other = without_zeros(job, "values")
    assert torch.equal(other.keys.digits, job.keys.digits)
    digits = other.values.digits[:, :2]
    assert digits.all()
    there = job.values.digits[:, :2] != 0
    assert torch.equal(digits[there], job.values.digits[:, :2][there])
    assert torch.equal(other.golden(), other.expected)


def test_command(captured, tmp_path, capsys) -> None:
    file = tmp_path / "power.json"
    arguments = ["power", str(captured), "--build-folder", str(FOLDER), "--json", str(file)]
    assert run([*arguments, "--no-clock-gating"]) == 0
    assert "none (--no-clock-gating). Every flip-flop is" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["command"].endswith(" --no-clock-gating")
    ungated = written["variants"]["captured"]
    assert ungated["clock_gate"] is None
    variants = ["captured", "no-zero-keys", "no-zero-values", *INTEGERS]
    options = [option for name in variants for option in ("--variant", name)]
    assert run([*arguments, "--shape", "Gemma-3-270M"]) != 0  # its layers are not alike
    assert "'Gemma-3-270M' is not one of 'SmolLM2-135M'" in capsys.readouterr().err
    assert run([*arguments, *options, "--shape", "SmolLM2-135M"]) == 0
    out = capsys.readouterr().out
    assert f"Clock gates: {PREFIX}dlclkp_4." in out
    assert "SmolLM2-135M: " in out and " uJ a token" in out
    written = json.loads(file.read_text())
    assert written["attentions_per_token"] == 90
    plain, keys, values, *integers = (written["variants"][name] for name in variants)
    assert plain["tags"]["energy"] == "projected" and not plain["internal_energies"]
    assert plain["total"]["clock_pj"] < ungated["total"]["clock_pj"] / 2
    # six tokens of five digits, the others of 3 and 2; two slices of four lanes
    tokens = written["tokens"]
    assert plain["slices"] == {"key": (3 * tokens + 2 * 6) * 2, "value": (2 * tokens + 3 * 6) * 2}
    assert plain["tags"]["slices"] == "measured"
    rows = plain["blocks"]
    assert set(rows) >= {"select_add", "select_accumulate", "normalizer", "engine"}
    for row in (*rows.values(), plain["total"]):
        parts = row["switching_pj"] + row["clock_pj"] + row["internal_pj"]
        assert row["total_pj"] == pytest.approx(parts, abs=0.01) and row["toggles"] > 0
    assert plain["total"]["toggles"] == sum(row["toggles"] for row in rows.values())
    # other keys, other sums; other values leave what comes before them as it was
    assert keys["blocks"]["select_add"]["toggles"] > rows["select_add"]["toggles"]
    for block in ("select_add", "plane_scaler", "online_softmax"):
        assert values["blocks"][block] == rows[block]
    # an accumulator with a zero digit is not clocked
    accumulate = (values["blocks"]["select_accumulate"], rows["select_accumulate"])
    assert accumulate[0]["clock_pj"] > 1.1 * accumulate[1]["clock_pj"]
    assert plain["clock_gate"] == f"{PREFIX}dlclkp_4"
    assert keys["cycles"] == values["cycles"] == plain["cycles"]
    # as many slices of 8 or of 4 bits; rescales go over the bits of an accumulator
    int8, int4 = integers
    assert int8["slices"] == int4["slices"] == {"key": 2 * tokens, "value": 2 * tokens}
    assert int4["cycles"] < int8["cycles"] < plain["cycles"]
    for block in ("multiply_add", "multiply_accumulate"):
        assert int8["blocks"][block]["toggles"] > int4["blocks"][block]["toggles"] > 0
