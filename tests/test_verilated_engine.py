"""The verilated engine: whole jobs against the golden model, at the speed of a compiled loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvtq_hw.contract.config import EngineConfig, load_config
from sim.bench.cases import Case, random_case
from sim.bench.stimulus import random_planes
from sim.verilated.engine import Job, SimulationError, Stalls, VerilatedEngine
from sim.verilated.slices import SliceBuffer

TINY = load_config("tiny")
CONFIGS = {
    "tiny": TINY,
    "one-slice": TINY.replace(lanes=8, block=8),
    "power-of-two": TINY.replace(scale_fraction_bits=0),
    "no-power-of-two": TINY.replace(head_dim=20, lanes=5, query_group=5, max_context=128),
}


def mixed_cases(config: EngineConfig, count: int, seed: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        tokens = int(rng.integers(1, config.max_context + 1))
        kind = str(rng.choice(["fewest", "most", "mixed"]))
        code = str(rng.choice(["balanced", "residual", "any"]))
        planes = [random_planes(rng, config, tokens, kind) for _ in range(2)]
        cases.append(random_case(seed + index, config, *planes, code=code))
    return cases


def compare(engine: VerilatedEngine, cases: list[Case], stalls: Stalls | None = None) -> None:
    run = engine.run([case.job for case in cases], stalls)
    for index, case in enumerate(cases):
        np.testing.assert_array_equal(run.outputs[index], case.expected, err_msg=f"job {index}")
    slices = sum(len(case.job.keys.words) for case in cases)
    assert run.counters["key_slices"] == slices
    assert run.counters["saturated_scores"] == sum(case.saturated for case in cases)


@pytest.mark.parametrize("name", CONFIGS)
def test_jobs_back_to_back(name: str) -> None:
    with VerilatedEngine(CONFIGS[name]) as engine:
        cases = mixed_cases(CONFIGS[name], 40, seed=1)
        assert len({case.job.keys.tokens for case in cases}) > 10
        assert sum(case.saturated for case in cases) > 0
        compare(engine, cases)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", range(3))
def test_stalls_on_every_stream(name: str, seed: int) -> None:
    stalls = [
        Stalls(seed, job=0.3, query=0.3, keys=0.3, values=0.3, output=0.3),
        Stalls(seed, keys=0.9),
        Stalls(seed, values=0.9),
        Stalls(seed, output=0.95),
    ]
    with VerilatedEngine(CONFIGS[name]) as engine:
        for pattern in stalls:
            compare(engine, mixed_cases(CONFIGS[name], 12, seed=100 * seed), pattern)


def test_longest_context() -> None:
    """Accumulators and denominators at the largest context of the configuration."""
    config = TINY.replace(max_context=1024)
    case = random_case(3, config, [5] * 1024, [5] * 1024)
    with VerilatedEngine(config) as engine:
        compare(engine, [case])


def test_refusals() -> None:
    case = random_case(0, TINY, [1] * 3, [1] * 3)
    empty = SliceBuffer(TINY, "key")
    job = case.job
    with VerilatedEngine(TINY) as engine:
        wrong = Job(job.queries, job.query_exponent, job.value_exponent, job.keys, empty)
        with pytest.raises(ValueError, match=r"^job of 3 keys and 0 values; must agree$"):
            engine.run([wrong])
        wrong = Job(job.queries, job.query_exponent, job.value_exponent, empty, empty)
        with pytest.raises(ValueError, match=r"^job of 0 tokens; allowed are 1\.\.64$"):
            engine.run([wrong])


def test_a_hang_is_an_error() -> None:
    """Slices that never mark a vector's end leave the engine waiting: it must not wait for ever."""
    case = random_case(0, TINY, [1] * 3, [1] * 3)
    case.job.keys.words[:, -1] = 0  # the flags stand in the last word
    done = r"values 0 of 6, output 0 of 8"
    message = rf"^the verilated engine hangs: done after \d+ cycles are {done}$"
    with VerilatedEngine(TINY) as engine, pytest.raises(SimulationError, match=message):
        engine.run([case.job])


def test_a_closed_design_runs_nothing() -> None:
    engine = VerilatedEngine(TINY)
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match=r"^the verilated engine is closed; make another one$"):
        engine.run([random_case(0, TINY, [1], [1]).job])


def test_waves(tmp_path: Path) -> None:
    waves = tmp_path / "job.vcd"
    case = random_case(0, TINY, [2] * 5, [2] * 5)
    with VerilatedEngine(TINY, waves=waves) as engine:
        compare(engine, [case])
        recorded = engine.run([case.job])
    for quick in (False, True):  # other models: without waves, and of quicker Verilog
        with VerilatedEngine(TINY, quick=quick) as engine:
            compare(engine, [case])
            assert engine.run([case.job]).counters == recorded.counters
    text = waves.read_text()
    assert "$enddefinitions" in text
    assert " output___05Fpayload " in text or " output__payload " in text


def test_slice_buffer_refusals() -> None:
    with pytest.raises(ValueError, match=r"^side must be 'key' or 'value', not 'query'$"):
        SliceBuffer(TINY, "query")  # type: ignore[arg-type]
