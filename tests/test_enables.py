"""Which clocks the value lanes need: accumulators' edges in a netlist, counted one by one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from bench_matrix import CONFIGS, INTEGER_CONFIGS, PLANES_CONFIGS

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.estimates.blocks import Part
from kvtq_hw.estimates.gate_simulation import simulate
from kvtq_hw.estimates.gates import link
from kvtq_hw.estimates.liberty import shipped_liberty
from kvtq_hw.estimates.synthesis import mapped_netlist
from kvtq_hw.host.results import ResultStore
from rtl.blocks import create_block
from rtl.layouts import Operation, accumulate_layout
from rtl.verilog import emit_rtlil


@pytest.mark.parametrize(
    "config",
    # two slices; lanes that are no power of two; one slice; multipliers; three planes together
    [
        CONFIGS["tiny"],
        CONFIGS["odd"],
        CONFIGS["full-width"],
        INTEGER_CONFIGS["int8"],
        PLANES_CONFIGS["planes-2-3"],
    ],
    ids=lambda config: config.name,
)
def test_an_accumulator_is_clocked_where_its_value_may_change(config: EngineConfig, tmp_path):
    """By a clear, by a shift for as long as some head needs it, by digits and weights.

    That is by digits that are not zero, of an ADD with a weight that is not zero.
    """
    rng = np.random.default_rng(1)
    beats: list[dict[str, object] | None] = [None]
    edges = np.zeros((config.slices, config.lanes), int)

    def take(operation: Operation, cycles: int = 1, **fields: object) -> None:
        beats.append({"operation": operation} | fields)
        beats.extend([None] * (cycles - 1))

    def add(kept: float) -> None:
        number = int(rng.integers(config.slices))
        width = config.value_planes_per_cycle * config.lanes
        digits = rng.integers(config.element_min, config.element_max + 1, width)
        digits[rng.random(width) > kept] = 0
        weighty = rng.random() < 0.7
        edges[number] += digits.reshape(-1, config.lanes).any(0) & weighty
        elements = [int(digit) for digit in digits]
        if config.is_ternary:
            elements = [{"nonzero": digit != 0, "negative": digit < 0} for digit in elements]
        weights = rng.integers(0, 1 << config.tripled_weight_bits, config.query_group).tolist()
        added = {"slice": number, "elements": elements, "weights": weights}
        take(Operation.ADD, weighty=int(weighty), **added)

    def shift(*shifts: int) -> None:
        steps = 1 + config.slices * config.rescale_steps
        take(Operation.SHIFT, steps, shifts=list(shifts)[: config.query_group])
        edges[:] += max(shifts[: config.query_group])

    take(Operation.CLEAR)
    edges += 1
    for shifts in ((0, 0), (1, 3), (2, 0), (0, 0)):
        for kept in (0.0, 0.3, 1.0):
            for _ in range(3 * config.slices):
                add(kept)
        shift(*shifts)
    take(Operation.DRAIN, config.head_dim + 6)
    assert counted(config, beats, tmp_path) == Counter(edges.ravel().tolist())


def counted(config: EngineConfig, beats: list, tmp_path) -> Counter[int]:
    """Run operations on the netlist of the value lanes; how many elements have how many edges."""
    layout = accumulate_layout(config)
    rtlil = emit_rtlil(create_block("value_lanes", config), "design")
    store, library = ResultStore(tmp_path / "results.sqlite"), shipped_liberty()
    mapped = link(
        [mapped_netlist(Part("value_lanes", "design", 1, rtlil), library, store)], "design", library
    )
    words = [layout.const(beat or {}).as_value().value for beat in beats]
    stimulus = {
        "rst": [[cycle == 0] for cycle in range(len(beats))],
        "i__valid": [[beat is not None] for beat in beats],
        "i__payload": [[word >> bit & 1 for bit in range(layout.size)] for word in words],
        "o__ready": [[1]] * len(beats),
    }
    inputs = {name: np.array(rows, np.uint8) for name, rows in stimulus.items()}
    toggles = simulate(mapped.gates, inputs, {}, first=1)
    behind = Counter(cell.inputs[cell.clock] for cell in mapped.cells if cell.clock)
    bits = config.query_group * config.accumulator_bits
    gates = [clock for clock, _ in mapped.gates.clocks if behind[clock] == bits]
    assert len(gates) == config.head_dim
    return Counter(int(toggles[clock]) // 2 for clock in gates)
