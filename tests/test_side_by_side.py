"""Accelerators side by side on one memory: the bytes and outputs of one accelerator."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from decode_command import arguments, report_of
from passes import PASSES, check_outputs, checked_session, run_passes
from test_verilated_accelerator import ANCHORED, CODES, SLOW, THRESHOLD, Heads
from tiny_model import tiny_model

from kvtq_hw.commands.frame.session import on_accelerator
from sim.verilated.accelerator import IDEAL, MemorySettings, VerilatedAccelerator
from sim.verilated.library import SimulationError
from sim.verilated.side_by_side import SideBySide

#: Counters that count time, so that they differ where jobs do not overlap.
TIMES = {"busy_cycles", "append_cycles", "starved_cycles", "stalled_cycles"}
HEADS = 3


def live(heads: Heads, settings: MemorySettings, accelerators: int | None):
    """Run twelve steps; return outputs, exponents, the memory, and counters of what is done.

    All jobs of a step run back to back on the heads' own accelerator when `accelerators` is None.
    """
    outputs, exponents, counters = [], [], []
    if accelerators is None:
        runner = heads.accelerator
    else:
        base = heads.layout.base
        runner = SideBySide(
            heads.config, heads.memory, accelerators, base=base, settings=settings, quick=True
        )
        runner.load_tables(heads.tables)
    with closing(runner):
        for tokens in range(1, 13):
            done = runner.run(heads.steps(tokens, tokens)[0])
            outputs.append(done.outputs)
            exponents.append(done.exponents)
            counters.append({name: n for name, n in done.counters.items() if name not in TIMES})
    return np.stack(outputs), np.stack(exponents), heads.memory, np.array(counters)


@pytest.mark.parametrize("code", [*CODES, ANCHORED])
@pytest.mark.parametrize("settings", [IDEAL, SLOW], ids=["ideal", "slow"])
def test_any_number_of_accelerators_does_the_same(code, settings):
    threshold = THRESHOLD if code == ANCHORED else 0
    expected = live(Heads(code, settings, count=HEADS, threshold=threshold), settings, None)
    for accelerators in (2, HEADS, HEADS + 1):
        heads = Heads(code, settings, count=HEADS, threshold=threshold)
        found = live(heads, settings, accelerators)
        for before, after in zip(expected, found, strict=True):
            assert np.array_equal(before, after), accelerators


@pytest.mark.parametrize(
    "code", ["balanced:3/2,sinks=2,window=4,feedback", "balanced:1/2,window=3,anchors=40,tier=3"]
)
def test_a_model_on_an_accelerator_per_head(code, tmp_path, monkeypatch):
    """Prefills, decode steps and loaded anchors: every output, and the memory after each text."""
    monkeypatch.chdir(tmp_path)
    with checked_session(partial(on_accelerator, accelerators=2), tiny_model(), code) as session:
        for passes in PASSES:
            compared, different = session.compare_memory(run_passes(session, passes))
            assert compared > 2 * 2 * 11 * 2 * 3
            assert different == 0
        check_outputs(session)
        assert session.hardware.cycles is None


@pytest.mark.parametrize(("processors", "counted"), [(1, True), (2, False)])
def test_heads_run_side_by_side_where_nothing_is_compared(
    tiny_folder, monkeypatch, capsys, processors, counted
):
    """Without a second processor, the heads run back to back, and their cycles are counted."""
    monkeypatch.setattr("kvtq_hw.estimates.workers.processors", lambda: processors)
    words = arguments(tiny_folder, "--max-new-tokens", "5")
    expected = report_of(*words, backend="golden")
    capsys.readouterr()
    found = report_of(*words, "--no-check", backend="rtl")
    assert found["tokens"] == expected["tokens"]
    assert (found["rtl_cycles"] is not None) == counted
    assert ("RTL cycles" in capsys.readouterr().out) == counted


@pytest.mark.parametrize("bad", [(0,), (2,), (1, 2)], ids=["first", "last", "two"])
def test_an_error_of_one_accelerator_ends_all(bad):
    heads = Heads(CODES[0], IDEAL, count=HEADS)
    runner = SideBySide(heads.config, heads.memory, HEADS, base=heads.layout.base)
    runner.load_tables(heads.tables)
    jobs, _ = heads.steps(1, 1)
    for head in bad:
        jobs[head] = replace(jobs[head], descriptor={**jobs[head].descriptor, "tokens": 0})
    with pytest.raises(
        SimulationError, match=r"^the verilated accelerator hangs: done after [^\n]*$"
    ):
        runner.run(jobs)
    with pytest.raises(
        ValueError, match=r"^the verilated accelerator is closed; make another one$"
    ):
        runner.run(jobs)


def test_close_closes_every_accelerator(monkeypatch):
    closed = []
    monkeypatch.setattr(VerilatedAccelerator, "close", lambda self: closed.append(self))
    heads = Heads(CODES[0], IDEAL, count=1)
    with closing(SideBySide(heads.config, heads.memory, 2, base=heads.layout.base)):
        assert closed == []
    assert len(set(closed)) == 2


def test_no_accelerator_is_refused():
    heads = Heads(CODES[0], IDEAL, count=1)
    with pytest.raises(ValueError, match="accelerators: 0 is not allowed; must be at least 1"):
        SideBySide(heads.config, heads.memory, 0)
