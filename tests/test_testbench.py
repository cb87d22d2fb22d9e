"""The testbench in plain Verilog: passes in both simulators, fails for faults, and its vectors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_matrix import CONFIGS, FOLDER, TINY
from click.testing import CliRunner
from pyslang.driver import Driver
from test_readers import SLANG
from tiny_model import prompt, save_tiny_model

from golden.llm.capture import load_captured
from kvtq_hw.commands.capture import command as capture
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.registers import register_map
from kvtq_hw.host.toolchain import find_simulator
from rtl.blocks import module_name
from rtl.verilog import lint_waivers
from sim.plain.captured_job import captured_session
from sim.plain.random_jobs import random_session
from sim.plain.session import AccessKind, Session
from sim.plain.testbench import files_of_testbench
from sim.verilated.object_cache import launcher
from sim.verilated.verilog_cache import cached_verilog

TOP = module_name("accelerator")


def write(folder: Path, session: Session) -> Path:
    """Write the accelerator and a testbench of it."""
    verilog = cached_verilog("accelerator", session.config, FOLDER / "verilog")
    texts = {f"{TOP}.v": verilog, f"{TOP}.vlt": lint_waivers()}
    for name, text in (texts | files_of_testbench(TOP, session)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


def simulate(folder: Path, simulator: str) -> subprocess.CompletedProcess[str]:
    """Run the command that the head of a testbench gives for a simulator."""
    (bench,) = folder.glob("*_tb.v")
    tool = {"icarus": "iverilog", "verilator": "verilator"}[simulator]
    (command,) = re.findall(rf"^//   \$ ({tool} .*)$", bench.read_text("utf-8"), re.MULTILINE)
    found = find_simulator(simulator)
    objects = launcher(FOLDER / f"testbench-{found.version}")  # of Verilator's runtime library
    environment = found.environment() | {"OBJCACHE": objects}
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


def verdict(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line that begins with PASS or FAIL."""
    lines = re.findall(r"^(?:PASS|FAIL).*$", done.stdout, re.MULTILINE)
    assert len(lines) == 1, done.stdout + done.stderr
    assert (done.returncode == 0) == lines[0].startswith("PASS"), done.stdout + done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The accelerator of the preset tiny and its testbench of random jobs."""
    return write(tmp_path_factory.mktemp("testbench"), random_session(TINY, 1))


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captured attention of a tiny model: two sinks, 15 tokens in 3 and 2 digits, a window."""
    folder = tmp_path_factory.mktemp("capture")
    model = save_tiny_model(folder / "model")
    options = ["--preset", "tiny", "--model", str(model), "--prompt", prompt(20)]
    options += ["--code", "balanced:3/2,sinks=2,window=4", "-o", str(folder / "out")]
    options += ["--layer", "1", "--head", "1", "--step", "5"]
    result = CliRunner().invoke(capture, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (file,) = (folder / "out").iterdir()
    return file


# --- it passes ------------------------------------------------------------------------------------


def test_random_jobs_pass(folder: Path, simulator: str) -> None:
    found = verdict(simulate(folder, simulator))
    index = json.loads((folder / f"{TOP}_vectors" / "index.json").read_text("utf-8"))
    jobs, outputs = index["jobs"], index["attentions"] * TINY.head_dim * TINY.query_group
    size = index["memory"]["bytes"]
    start = f"PASS: {jobs} jobs, {outputs} elements of outputs, {size} bytes of memory, "
    assert found.startswith(start) and outputs > 500


def test_a_capture_passes(captured: Path, tmp_path: Path, simulator: str) -> None:
    session = captured_session(TINY, captured)
    assert (session.before == session.after).all() and session.attentions == 1
    write(tmp_path, session)
    assert verdict(simulate(tmp_path, simulator)).startswith("PASS: 2 jobs, 16 elements")


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
def test_one_head_and_odd_widths_pass(tmp_path: Path, simulator: str) -> None:
    write(tmp_path, random_session(CONFIGS["odd"], 7))
    assert verdict(simulate(tmp_path, simulator)).startswith("PASS")


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
def test_generate_writes_a_testbench(
    tmp_path: Path, simulator: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--preset", "tiny", "--prefix", "core_a", "--reset", "async-low"]
    arguments.append("--no-initial-values")
    assert run([*arguments, "--testbench", "--seed", "2", "-o", str(tmp_path)]) == 0
    names = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"core_a_accelerator_tb.v", "index.json", "output.hex"} <= names
    bench = (tmp_path / "core_a_accelerator_tb.v").read_text("utf-8")
    assert all(
        name.startswith("core_a_accelerator_tb")
        for name in re.findall(r"^module (\w+)", bench, re.MULTILINE)
    )
    assert verdict(simulate(tmp_path, simulator)).startswith("PASS")


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
@pytest.mark.parametrize("language", ["2001", "2012"])
def test_icarus_has_no_complaint(folder: Path, language: str, simulator: str) -> None:
    command = ["iverilog", "-Wall", f"-g{language}", "-t", "null", f"{TOP}_tb.v", f"{TOP}.v"]
    environment = find_simulator(simulator).environment()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_slang_has_no_complaint(folder: Path) -> None:
    """But those that the accelerator has (`test_readers`): numbers are extended as Verilog does."""
    driver = Driver()
    driver.addStandardArgs()
    files = f"{folder}/{TOP}_tb.v {folder}/{TOP}.v"
    assert driver.parseCommandLine(f"slang -Weverything --top {TOP}_tb {files}")
    assert driver.processOptions() and driver.parseAllSources()
    found = {str(said.code) for said in driver.createCompilation().getAllDiagnostics()}
    assert found <= {f"DiagCode({kind})" for kind in SLANG}


# --- it fails -------------------------------------------------------------------------------------

#: Faults of the RTL: the module, a pattern in its text, what takes its place, and the verdict.
FAULTS = {
    "sign in value lanes": (
        "core_value_lanes",
        r"\) \+ (\$signed)",
        r") - \1",
        r"element \d+ of attention \d+ \(beat \d+\): tlast, tuser and tdata are",
    ),
    "address bit": (
        "reader",
        r"(m_axi_araddr <= \w+);",
        r"\1 ^ 20'h00010;",
        r"element \d+ of attention \d+|a burst cannot be read",
    ),
    "write strobe": (
        "writer",
        r"(m_axi_wstrb <= \w+);",
        r"\1 & 4'he;",
        r"element \d+ of attention \d+",
    ),
    "reset value": (
        "control",
        r"rst \? 17'h00000 :",
        "rst ? 17'h00001 :",
        r"step \d+: register 0x2\w\w is 00000001 in the bits 0001ffff, expected 00000000",
    ),
    "rounding": (
        "core_normalizer",
        r"\+ \$signed\(2'h1\)",
        "+ $signed(2'h0)",
        r"element \d+ of attention \d+",
    ),
    "hang": (
        "",
        r"assign m_axi_rready = 1'h1;",
        "assign m_axi_rready = 1'h0;",
        r"no end after \d+ cycles: step \d+ of \d+, outputs 0 of \d+, words of tables (\d+) of \d",
    ),
    "interrupt": (
        "control",
        r"assign irq = [^;]*;",
        "assign irq = 1'h0;",
        r"step \d+: irq is 0, expected 1",
    ),
    "unknown": (
        "control",
        r"assign irq = [^;]*;",
        "assign irq = 1'hx;",
        r"a valid, a ready or irq",
    ),
}


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_rtl_fails(folder: Path, tmp_path: Path, fault: str, simulator: str) -> None:
    module, pattern, spoiled, message = FAULTS[fault]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / f"{TOP}.v"
    name = f"{TOP}_{module}" if module else TOP
    before, start, text = file.read_text("utf-8").partition(f"\nmodule {name}(")
    text, count = re.subn(pattern, spoiled, text, count=1)
    assert count == 1, f"no {pattern} in {name}"
    file.write_text(before + start + text, "utf-8")
    bench = tmp_path / f"{TOP}_tb.v"
    shorter = re.sub(r"(parameter LIMIT =) \d+", r"\1 10000", bench.read_text("utf-8"))
    bench.write_text(shorter, "utf-8")
    found = verdict(simulate(tmp_path, simulator))
    assert re.match(rf"FAIL: (?:{message})", found), found


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("memory_after", r"the memory's word at 0x0+4000 is \w{8}, expected \w{8}$"),
        ("output", r"element 0 of attention 0 \(beat 0\)"),
        (
            "registers",
            r"step 0: register 0x000 is 5154564b in the bits ffffffff, expected 5154564a$",
        ),
    ],
)
def test_a_wrong_vector_fails(
    folder: Path, tmp_path: Path, file: str, message: str, simulator: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / f"{TOP}_vectors" / f"{file}.hex"
    first, rest = path.read_text("utf-8").split("\n", 1)
    word, space, comment = first.partition(" ")
    digits = word.removesuffix("_ffffffff")
    changed = f"{digits[:-1]}{int(digits[-1], 16) ^ 1:x}{word[len(digits) :]}"
    path.write_text(f"{changed}{space}{comment}\n{rest}", "utf-8")
    found = verdict(simulate(tmp_path, simulator))
    assert re.match(rf"FAIL: (?:{message})", found), found


# --- the vectors ----------------------------------------------------------------------------------


def numbers(text: str, fields: list[dict[str, int]]) -> list[dict[str, int]]:
    """Read a file of vectors as its entry in the index describes it."""
    words = [int(line.partition("//")[0].replace("_", ""), 16) for line in text.splitlines()]
    assert all(word < 1 << fields[0]["offset"] + fields[0]["width"] for word in words)
    return [
        {f["name"]: word >> f["offset"] & (1 << f["width"]) - 1 for f in fields} for word in words
    ]


def test_vectors_are_as_the_index_says() -> None:
    session = random_session(TINY, 1)
    files = files_of_testbench(TOP, session)
    index = json.loads(files[f"{TOP}_vectors/index.json"])
    assert index["digest"] == TINY.digest() and index["kinds"]["await_other"] == 2
    assert {f"{TOP}_vectors/{entry['name']}" for entry in index["files"]} == {
        name for name in files if name.endswith(".hex")
    }
    read = {}
    for entry in index["files"]:
        text = files[f"{TOP}_vectors/{entry['name']}"]
        assert text.count("\n") == entry["lines"]
        assert entry["fields"][-1]["offset"] == 0
        read[entry["name"]] = numbers(text, entry["fields"])
    assert [(beat["last"], beat["data"]) for beat in read["query.hex"]] == [
        (beat.last, beat.data) for beat in session.queries
    ]
    assert [beat["user"] for beat in read["output.hex"]] == [beat.user for beat in session.outputs]
    words = b"".join(word["word"].to_bytes(4, "little") for word in read["memory_after.hex"])
    assert words == session.after.tobytes() and any(words)
    starts = [
        access
        for access in read["registers.hex"]
        if access["kind"] == AccessKind.WRITE
        and access["address"] == register_map()["control"].address
    ]
    assert len(starts) == index["jobs"]


def test_random_jobs_reach_what_they_are_for() -> None:
    """Anchors and tokens that do not become one; learned sinks; jobs of either half alone."""
    session = random_session(TINY, 1)
    anchors = [access.data for access in session.accesses if access.name == "new_anchors"]
    leaving = 2 * (TINY.head_dim + 1 - 2 - 3)  # tokens of two heads behind sinks and window
    assert 0 < anchors[-1] < leaving
    assert any(a.name.startswith("sink_weight") and a.data and not a.kind for a in session.accesses)
    assert session.attentions < session.jobs
    assert len(session.pairs) < TINY.head_dim * session.jobs
    assert len(session.outputs) == len(session.queries) == TINY.head_dim * session.attentions


def test_a_seed_gives_the_same_files() -> None:
    first, again, other = (files_of_testbench(TOP, random_session(TINY, s)) for s in (3, 3, 4))
    assert first == again
    assert {name for name in first if first[name] != other[name]} >= {
        f"{TOP}_vectors/{name}.hex" for name in ("query", "output", "memory_after")
    }


# --- captures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "runs", "code"),
    [
        ([(2, 1)] * 3, "balanced", "balanced:2/1,tier=3"),
        ([(3, 3), (3, 3), (2, 1)], "balanced", "balanced:2/1,sinks=2,tier=3"),
        ([(2, 1), (3, 3)], "balanced", "balanced:2/1,window=1,tier=3"),
        ([(3, 3), (2, 1), (3, 3), (3, 3)], "balanced", "balanced:2/1,sinks=1,window=2,tier=3"),
        ([(3, 2)] * 2, "residual", "residual:3/2,tier=3"),
        ([(1, 1)] * 2, "residual", "balanced:1/1,tier=3"),
        ([(3, 3), (2, 1), (2, 2)], "balanced", None),
        ([(2, 1), (3, 2)], "balanced", None),
        ([(2, 1), (3, 3), (2, 1)], "balanced", None),
        ([(3, 2), (2, 2)], "residual", None),
    ],
)
def test_tokens_of_a_capture_are_in_a_code(
    captured: Path,
    tmp_path: Path,
    depths: list[tuple[int, int]],
    runs: str,
    code: str | None,
) -> None:
    config = TINY.replace(max_planes=3)
    job = load_captured(captured)
    tokens = len(depths)
    parts = {}
    for side, column in (("keys", 0), ("values", 1)):
        planes = torch.arange(3)
        present = planes < torch.tensor(depths)[:, column, None]
        unit = present & ((planes == 0) | torch.tensor(runs == "residual"))
        old = getattr(job, side)
        parts[side] = replace(
            old,
            digits=old.digits[:tokens, :3] * present[..., None].to(torch.int8),
            unit=unit,
            fraction=torch.where(unit, 1, 0),
            exponent=torch.where(unit, 2, 0),
        )
        parts[f"{side[:-1]}_depths"] = torch.tensor(depths)[:, column]
        parts[f"{side[:-1]}_vectors"] = getattr(job, f"{side[:-1]}_vectors")[:tokens]
    changed = replace(job, config=config, value_exponent=2, **parts)
    replace(changed, expected=changed.golden()).save(tmp_path / "file")
    if code is None:
        with pytest.raises(UserError, match=r"its tokens are in no code; must be sinks, body and"):
            captured_session(config, tmp_path / "file")
    else:
        session = captured_session(config, tmp_path / "file")
        assert session.source.endswith(f", code {code}")
        assert session.before.any()


def test_a_capture_of_another_configuration_is_refused(captured: Path) -> None:
    config = TINY.replace(name="wide", lanes=8)
    with pytest.raises(
        UserError, match=r"^captured .*: lanes is 4, of configuration 'wide' 8; must be the same$"
    ):
        captured_session(config, captured)
    assert captured_session(TINY.replace(name="other"), captured).jobs == 2


def test_a_capture_of_another_golden_model_is_refused(captured: Path, tmp_path: Path) -> None:
    job = load_captured(captured)
    replace(job, expected=job.expected + 1).save(tmp_path / "file")
    with pytest.raises(UserError, match=r"the golden model of today gives other outputs$"):
        captured_session(TINY, tmp_path / "file")


@pytest.mark.parametrize("arguments", [[], ["--testbench", "none"]], ids=str)
def test_a_seed_is_for_random_jobs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--seed", "3", "-o", str(tmp_path)]
    assert run(["generate", "--preset", "tiny", *arguments, *out]) == 2
    expected = "kvtq-hw: error: --seed: only with --testbench without CAPTURE\n"
    assert capsys.readouterr().err == expected
    assert not list(tmp_path.iterdir())


def test_a_capture_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--preset", "tiny", "--testbench", str(tmp_path / "none")]
    assert run([*arguments, "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"kvtq-hw: error: captured attention {str(tmp_path / 'none')!r}: No su")
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_integers_have_no_accelerator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "int8.toml"
    fields = TINY.replace(name="int8", cache_format="int8", max_planes=1).model_dump()
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in fields.items()), "utf-8")
    assert load_config(str(config)).integer_bits == 8
    assert run(["generate", "--preset", str(config), "--testbench", "-o", str(tmp_path)]) == 1
    assert "'accelerator' does not exist in cache_format 'int8'" in capsys.readouterr().err
