"""The bench runner: what fails when a bench does, and `kvtq-hw simulate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_matrix import CONFIGS, FOLDER

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.errors import UserError
from rtl import elements
from rtl.blocks import BLOCKS, create_block
from sim.bench.axi_checker import WATCHED_VARIABLE
from sim.bench.runner import BenchError, CaseResult, read_results, run_bench
from sim.verilated.object_cache import _run as compile_through_cache

TINY = CONFIGS["tiny"]
ROOT = Path(__file__).resolve().parent.parent

PASSED = '<testcase name="a" time="0.5"/>'
FAILED = '<testcase name="b" time="1"><failure message="o[0] is 1, expected 2"/></testcase>'
SKIPPED = '<testcase name="c" time="0"><skipped/></testcase>'
SUMMARY = "** TESTS={} PASS=1 FAIL=1 SKIP=0 **\n"


def results(folder: Path, cases: str, log: str) -> tuple[CaseResult, ...]:
    xml = folder / "results.xml"
    xml.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    (folder / "log").write_text(log)
    return read_results(xml, folder / "log")


def test_read_results(tmp_path: Path) -> None:
    found = results(tmp_path, PASSED + FAILED + SKIPPED, SUMMARY.format(2))
    assert found == (
        CaseResult("a", True, 0.5, ""),
        CaseResult("b", False, 1.0, "o[0] is 1, expected 2"),
    )


def test_missing_results_are_no_pass(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"^no readable results of the simulation .*; log: "):
        read_results(tmp_path / "results.xml", tmp_path / "log")


def test_empty_results_are_no_pass(tmp_path: Path) -> None:
    (tmp_path / "results.xml").write_text("")
    with pytest.raises(BenchError, match=r"^no readable results of the simulation "):
        read_results(tmp_path / "results.xml", tmp_path / "log")


@pytest.mark.parametrize("cases", ["", SKIPPED])
def test_no_test_is_no_pass(tmp_path: Path, cases: str) -> None:
    with pytest.raises(BenchError, match=r"^the simulation executed no test; log: "):
        results(tmp_path, cases, SUMMARY.format(0))


@pytest.mark.parametrize(("log", "counted"), [("", "no"), (SUMMARY.format(2), "2")])
def test_a_count_that_does_not_add_up_is_no_pass(tmp_path: Path, log: str, counted: str) -> None:
    with pytest.raises(BenchError, match=f"^results hold 1 tests, the log {counted}; log: "):
        results(tmp_path, PASSED, log)


def test_every_block_has_a_bench() -> None:
    benches = {path.stem for path in (ROOT / "sim" / "benches").glob("[!_]*.py")}
    assert benches == set(BLOCKS)


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_found_by_name(block: str) -> None:
    component = create_block(block, TINY)
    assert type(component).__module__ == f"rtl.{block}"


def test_unknown_block() -> None:
    message = f"^block: 'adder' is unknown; allowed are {', '.join(BLOCKS)}$"
    with pytest.raises(UserError, match=message):
        create_block("adder", TINY)


@pytest.fixture
def wrong_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build folder of its own, for lanes that never subtract."""
    monkeypatch.setattr(
        elements, "select", lambda trit, value: value & trit.nonzero.replicate(len(value))
    )
    for objects in FOLDER.glob("objects-*"):  # the simulator's own library is not wrong
        (tmp_path / objects.name).symlink_to(objects)
    return tmp_path


def test_a_wrong_block_fails(simulator: str, wrong_folder: Path) -> None:
    result = run_bench(
        "key_lanes", TINY, simulator, seed=1, folder=wrong_folder, testcase="full_throughput"
    )
    (test,) = result.tests
    assert not test.passed
    assert test.message.startswith("o[")
    assert ", expected " in test.message


def test_a_bus_that_is_not_watched_is_refused(simulator: str, tmp_path: Path) -> None:
    elsewhere = {WATCHED_VARIABLE: str(tmp_path / "watched.txt")}
    expected = f"^control on {simulator}: no checker on axi in every test; a bench begins with "
    with pytest.raises(BenchError, match=expected):
        run_bench(
            "control",
            TINY,
            simulator,
            seed=4,
            folder=FOLDER,
            testcase="counters",
            variables=elsewhere,
        )


def test_waves(simulator: str) -> None:
    result = run_bench(
        "query_buffer",
        TINY,
        simulator,
        seed=3,
        folder=FOLDER,
        waves=True,
        testcase="symmetric_range",
    )
    assert not result.failed
    assert result.waves is not None
    assert result.waves.stat().st_size > 1000


def test_builds_are_reused(simulator: str) -> None:
    for _ in range(2):
        run_bench("query_buffer", TINY, simulator, seed=2, folder=FOLDER)
    stamps = [path for path in FOLDER.glob(f"{simulator}-query_buffer-*/done")]
    before = {path: path.stat().st_mtime_ns for path in stamps}
    run_bench("query_buffer", TINY, simulator, seed=2, folder=FOLDER)
    assert {path: path.stat().st_mtime_ns for path in stamps} == before


def test_simulate_command(simulator: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset", "tiny", "--simulator", simulator, "--build-folder", str(FOLDER)]
    assert run(["simulate", "query_buffer", *options]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "query_buffer" in line)
    assert row.replace("│", "").split()[:4] == ["query_buffer", "7", "7", "0"]


def test_simulate_command_fails_with_its_bench(
    simulator: str, wrong_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--preset", "tiny", "--simulator", simulator, "--build-folder", str(wrong_folder)]
    assert run(["simulate", "key_lanes", "--test", "full_throughput", *options]) == 1
    assert "key_lanes: full_throughput: o[" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["adder"], 1, f"block: 'adder' is unknown; allowed are {', '.join(BLOCKS)}"),
        (["--preset", "huge"], 1, "preset: 'huge' is unknown; allowed are "),
        (["--simulator", "modelsim"], 2, "Invalid value for '--simulator': 'modelsim' is not "),
        (["--seed", "-1"], 2, "Invalid value for '--seed': -1 is not in the range "),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith(f"kvtq-hw: error: {message}")
    assert error.count("\n") == 1


def test_object_cache_compiles_the_runtime_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "verilated_part.cpp"
    source.write_text("")
    calls = []

    def compiler(command: list[str]) -> int:
        calls.append(command)
        (tmp_path / "out.o").write_text("object")
        return 0

    monkeypatch.setattr("subprocess.call", compiler)
    command = ["c++", "-c", "-o", str(tmp_path / "out.o"), str(source)]
    for _ in range(2):
        (tmp_path / "out.o").unlink(missing_ok=True)
        assert compile_through_cache(tmp_path / "cache", command) == 0
        assert (tmp_path / "out.o").read_text() == "object"
    assert len(calls) == 1
    compile_through_cache(tmp_path / "cache", [*command[:-1], "model.cpp"])
    compile_through_cache(tmp_path / "cache", [*command[:-1], "model.cpp"])
    assert len(calls) == 3
