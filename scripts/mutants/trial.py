"""What happens in a process of its own, in a copy of the checkout: tests, or Verilog to compare."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numba
import pytest

__all__ = ["OUTER", "TOO_LONG_S", "hardware", "run_tests"]

#: A test that takes longer than this, of a clock or of processors, is not asked about mutants; nor
#: are a file's other tests when those before took as long.
TOO_LONG_S = 300
MOST_CPU_S = 60

#: Blocks that contain the others, and the largest head dimension for which they are soon written.
OUTER, SMALL = ("engine", "accelerator"), 16


def _enter(tree: Path, environment: Mapping[str, str], log: Path) -> None:
    """Make the process one that was started in `tree`, with its output in `log`."""
    os.setsid()
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    os.chdir(tree)
    os.environ.update(environment)
    sys.dont_write_bytecode = False  # the copy is thrown away, and it is imported again and again
    numba.config.CACHE_DIR = environment["NUMBA_CACHE_DIR"]  # it was imported before
    sys.path.insert(0, str(tree))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _processor_s() -> float:
    """Processor time of this process and of those that it waited for."""
    return sum(os.times()[:4])


def _end_with_the_command() -> None:
    """Kill the process and its simulators when the command is gone, however it ended."""
    command = parent_process()
    assert command is not None
    wait([command.sentinel])
    os.killpg(0, signal.SIGKILL)


class _Plugin:
    """Chooses the tests of a phase, and notes seconds and the first failure.

    Phase 0 is what needs no simulator and the benches of the smallest configuration; phase 1 the
    rest. All of it on Icarus alone, which starts sooner than Verilator builds.
    """

    def __init__(self, phase: int, skip: set[str], seconds: Mapping[str, float]) -> None:
        self._phase, self._skip, self._before = phase, skip, seconds
        self._started = _processor_s()
        self.seconds: dict[str, float] = {}
        self.bad: set[str] = set()
        self.failure = ""

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        chosen = [item for item in items if self._wanted(item)]
        dropped = [item for item in items if item not in chosen]
        config.hook.pytest_deselected(items=dropped)
        items[:] = sorted(chosen, key=lambda item: self._before.get(item.nodeid, 0.0))

    def _wanted(self, item: Any) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        simulator, config = parameters.get("simulator"), parameters.get("config")
        if simulator == "verilator" or item.nodeid in self._skip:
            return False
        small = getattr(config, "name", "tiny") == "tiny"
        return self._phase == (0 if simulator is None or small else 1)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, object, object]:
        """Measure a test, setup and all."""
        before = _processor_s()
        result = yield
        self.seconds[item.nodeid] = _processor_s() - before
        if self.seconds[item.nodeid] > MOST_CPU_S:
            self.bad.add(item.nodeid)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """Interrupt a test that takes too long."""
        if not self._before and _processor_s() - self._started > MOST_CPU_S:
            pytest.skip("the tests before took long enough")

        def stop(*_: object) -> None:
            pytest.fail(f"took longer than {TOO_LONG_S} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(TOO_LONG_S)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.bad.add(report.nodeid)
        if report.failed and not self.failure:
            self.failure = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failure:
            self.failure = f"{report.nodeid} (not even collected)"


def _hide_verilator() -> None:
    """Skip what would build with Verilator, which takes longer than all other tests of a block."""

    def verilator() -> None:
        pytest.skip("Verilator builds too slowly")

    with suppress(ImportError):
        importlib.import_module("kvtq_hw.toolchain").verilator = verilator  # type: ignore[attr-defined]


def run_tests(
    tree: Path,
    environment: Mapping[str, str],
    answer: Path,
    test_file: str,
    phase: int,
    seconds: Mapping[str, float] | None,
    skip: set[str],
) -> None:
    """Run a phase of a test file, and write what happened to `answer`, as JSON.

    `seconds` are the tests' durations in an earlier run, cheapest first then, to the first failure;
    None is that earlier run, to the end.
    """
    _enter(tree, environment, answer.with_suffix(".log"))
    _hide_verilator()
    plugin = _Plugin(phase, skip, seconds or {})
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(["-x"] if seconds else [])]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # libraries are imported
    status = pytest.main([*arguments, test_file], plugins=[plugin])
    failure = plugin.failure
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not failure:
        failure = f"{test_file} (pytest ended with {int(status)})"
    result = {"seconds": plugin.seconds, "bad": sorted(plugin.bad), "failure": failure}
    answer.write_text(json.dumps(result), "utf-8")


def hardware(
    tree: Path,
    environment: Mapping[str, str],
    answer: Path,
    blocks: list[str],
    one: bool,
    expected: Mapping[str, str] | None,
) -> None:
    """Write hashes of what is generated to `answer`, as JSON, up to the first that is not expected.

    That is Verilog and manifest, of each block in every configuration that the tests' matrix or a
    preset names, smallest first. The engine and the accelerator, which contain the other blocks,
    are asked in small configurations alone, unless there is nothing else to ask. With `one`, there
    is only the first configuration.
    """
    _enter(tree, environment, answer.with_suffix(".log"))
    sys.path.insert(0, str(tree / "tests"))
    from kvtq_hw.config import EngineConfig, load_config
    from rtl.blocks import blocks_of, create_block, module_name
    from rtl.manifest import manifest
    from rtl.verilog import emit

    matrix = importlib.import_module("bench_matrix")
    tables = [table for table in vars(matrix).values() if isinstance(table, dict)]
    values = [value for table in tables for value in table.values()]
    presets = [load_config(path.stem) for path in (tree / "kvtq_hw" / "presets").glob("*.toml")]
    configs = {c.digest(): c for c in [*values, *presets] if isinstance(c, EngineConfig)}
    found: dict[str, str] = {}
    for config in sorted(configs.values(), key=lambda c: (c.head_dim, c.lanes, c.name)):
        if one and found:
            break
        for block in blocks:
            outer = block in OUTER and config.head_dim > SMALL and not set(blocks) <= set(OUTER)
            if outer or block not in blocks_of(config):
                continue
            component, name = create_block(block, config), module_name(block)
            texts = emit(component, name, ""), str(manifest(component, name, config, []))
            case = f"{block}, {config.name}, {config.digest()[:8]}"
            found[case] = hashlib.sha256("\0".join(texts).encode()).hexdigest()
            if expected is not None and found[case] != expected.get(case):
                answer.write_text(json.dumps(found), "utf-8")
                return
    answer.write_text(json.dumps(found), "utf-8")
