"""The system on a chip: its RISC-V program runs a decode, and says what differs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_matrix import FOLDER, TINY
from test_scripts import script
from tiny_model import prompt, tiny_model

import sim.soc.system
from golden.llm.calibration import calibrate
from kvtq_hw.commands.frame.session import Session
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.errors import UserError
from sim.soc.decode import Decode, DecodeRecorder, Job
from sim.soc.simulation import Run, SocSimulation
from sim.soc.system import make_system

CODE = "balanced:2/1,sinks=2,window=3,feedback"
CACHE = (FOLDER / "soc").resolve()
PROMPT, STEPS = 6, 7  # tokens


def recorded(
    code: str, tokens: int = PROMPT, steps: int = STEPS, sliding: int | None = None
) -> Decode:
    """A decode of a tiny model, all of its layers; the first with a sliding window."""
    model = tiny_model(sliding=sliding)
    recorder = DecodeRecorder(range(model.layers))
    session = Session(
        model, TINY, CacheCode.parse(code), calibrate(model, prompt(60), tokens=50), recorder
    )
    session.decode(prompt(tokens), steps + 1)
    return recorder.decode()


@pytest.fixture(scope="module")
def decode() -> Decode:
    return recorded(CODE)


@pytest.fixture(scope="module")
def system(riscv: object) -> SocSimulation:
    return SocSimulation(TINY, CACHE / "kvtq-hw")


def numbers(run: Run) -> dict[str, int]:
    """The lines of a report that end in a number."""
    return {name.strip(): int(n) for name, n in re.findall(r"^(.*): (\d+)$", run.text, re.M)}


# --- what passes ----------------------------------------------------------------------------------


def test_a_decode_gives_goldens_bits(system: SocSimulation, decode: Decode) -> None:
    """Behind a prefill whose tokens are in the memory; with tables, sinks, body and window."""
    run = system.run(decode)
    assert run.text.splitlines()[-2] == "PASS" and run.status == 0
    found, jobs = numbers(run), STEPS * 2 * 2
    assert found["jobs"] == jobs
    assert found["outputs compared with golden"] == jobs * TINY.head_dim * TINY.query_group
    assert found["exponents compared with golden"] == jobs * TINY.head_dim
    assert found["different"] == 0
    assert STEPS * 2 <= found["interrupts"] <= jobs  # one may stand for both jobs of a batch
    busy, append = found["accelerator, attention"], found["accelerator, append"]
    whole = found["from the first register write to the outputs in memory"]
    assert 0 < append < busy < whole
    assert 0 < found["firmware, awake"] <= whole
    assert found["cycles"] // jobs == whole and found["cycles"] < found["cycles of the simulation"]


@pytest.mark.parametrize(
    ("code", "sliding"),
    [("residual:2/3,sinks=1", None), ("balanced:1/2,sinks=1,window=3,tier=3", 5)],
)
def test_other_codes_from_the_first_token_on(
    system: SocSimulation, code: str, sliding: int | None
) -> None:
    """The hardware stores every token of the memory itself."""
    found = recorded(code, tokens=1, steps=8, sliding=sliding)
    assert not found.memory.any()
    run = system.run(found)
    assert (run.status, numbers(run)["different"]) == (0, 0), run.text


# --- what fails -----------------------------------------------------------------------------------


def changed(decode: Decode, batch: int, job: int, change: Callable[[Job], Job]) -> Decode:
    """The decode with one job changed."""
    batches = [list(jobs) for jobs in decode.batches]
    batches[batch][job] = change(batches[batch][job])
    return replace(decode, batches=batches)


def plus_one(vectors: np.ndarray, row: int, element: int) -> np.ndarray:
    vectors = vectors.copy()
    vectors[row, element] += 1
    return vectors


def test_one_expected_bit_that_differs_is_named(system: SocSimulation, decode: Decode) -> None:
    wrong = changed(
        decode, 3, 1, lambda job: replace(job, outputs=plus_one(job.outputs, row=1, element=5))
    )
    run = system.run(wrong)
    assert run.status == 1
    assert numbers(run)["different"] == 1 and run.text.splitlines()[-2] == "FAIL"
    word = TINY.head_dim * 3 + 5 * 3 + 1  # the second job's; G words and an exponent per beat
    right, expected = (int(x.batches[3][1].outputs[1, 5]) & 0xFFFFFFFF for x in (decode, wrong))
    first = f"first difference: batch 3, word {word}: 0x{right:08x}, golden 0x{expected:08x}"
    assert run.text.splitlines()[0] == first


def test_another_key_gives_other_outputs(system: SocSimulation, decode: Decode) -> None:
    """So the comparison sees what the accelerator computes, and not what is in the memory."""

    def other(job: Job) -> Job:
        return replace(job, vectors=-job.vectors)

    run = system.run(changed(decode, 0, 0, other))
    assert run.status == 1
    assert numbers(run)["different"] > TINY.head_dim
    assert run.text.startswith("first difference: batch 0, word 0")


def without_queries(decode: Decode) -> Decode:
    """The last job waits for its last beat of queries."""
    return changed(decode, -1, -1, lambda job: replace(job, queries=job.queries[:, :-1]))


def without_tokens(decode: Decode) -> Decode:
    return changed(decode, 0, 0, lambda job: replace(job, tokens=0))


def with_too_long_a_context(decode: Decode) -> Decode:
    return replace(decode, tokens=TINY.max_context + 1)


def in_a_smaller_memory(decode: Decode) -> Decode:
    return replace(decode, memory=decode.memory[:-8])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_queries, "wait: KVTQ_ERROR_TIMEOUT"),
        (without_tokens, "describe: KVTQ_ERROR_TOKENS"),
        (with_too_long_a_context, "place: KVTQ_ERROR_TOKENS"),
        (in_a_smaller_memory, "place: KVTQ_ERROR_MEMORY"),
    ],
)
def test_the_drivers_errors_end_the_program(
    system: SocSimulation, decode: Decode, spoil: Callable[[Decode], Decode], message: str
) -> None:
    """An accelerator that never answers too: the driver's timeout, not a hang."""
    run = system.run(spoil(decode))
    assert run.status == 2
    assert run.text.splitlines()[0] == f"FAIL: {message}"


def test_a_program_that_does_not_end_is_stopped(system: SocSimulation, decode: Decode) -> None:
    run = system.run(decode, limit=5000)
    assert (run.status, run.text) == (3, "FAIL: no end after 5000 cycles\n")


def test_a_program_that_does_not_fit_is_refused(system: SocSimulation, decode: Decode) -> None:
    with pytest.raises(UserError, match=r"program does not build: .*main_ram"):
        system.run(replace(decode, memory=np.zeros(1 << 20, np.uint8)))


# --- what is recorded and generated ---------------------------------------------------------------


def test_a_code_with_anchors_is_refused() -> None:
    with pytest.raises(UserError, match="has anchors; must be a code without them"):
        recorded("balanced:2/1,sinks=1,window=5,anchors=4,feedback")


def test_a_layer_without_decode_steps_is_refused() -> None:
    with pytest.raises(UserError, match="layer 7: no decode step; must be at least one"):
        DecodeRecorder([7]).decode()


def test_a_system_is_the_same_text_every_time() -> None:
    """Otherwise every run would build it anew."""
    first, second = (make_system(TINY, "kvtq_accelerator", 1 << 16) for _ in range(2))
    assert first == second
    assert "kvtq_accelerator kvtq_accelerator(" in first.verilog


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim.soc.system, "find_spec", {"litex": "there"}.get)
    with pytest.raises(UserError, match=r"pythondata_cpu_vexriscv: .*pip install 'kvtq-hw\[soc\]'"):
        make_system(TINY, "kvtq_accelerator", 1 << 16)


# --- the script -----------------------------------------------------------------------------------


def test_make_soc_runs_a_models_decode(
    riscv: object, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    arguments = ["--model", str(tiny_folder), "--preset", "tiny", "--code", CODE]
    arguments += ["--prompt", prompt(PROMPT), "--tokens", "2", "--layer", "1"]
    assert script("run_soc").main(arguments) == 0
    out = capfd.readouterr().out
    assert "jobs: 4\n" in out and "different: 0\n" in out and "PASS\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "0", "2"], "--layer: [0, 2] is not allowed; must be 0..1"),
        (["--layer", "0", "--tokens", "0"], "--tokens: 0 is not allowed; must be at least 1"),
    ],
)
def test_wrong_options_are_one_line(
    tiny_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert script("run_soc").main(["--model", str(tiny_folder), *arguments]) == 2
    assert capsys.readouterr().err == f"soc: error: {message}\n"
