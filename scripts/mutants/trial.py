"""Functions that run in a separate process, in a copy of the checkout: tests, or Verilog hashes."""

from __future__ import annotations

import gc
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

__all__ = ["OUTER", "hardware", "run_tests"]

#: Time limit of a test in seconds: `_UNKNOWN_S` if its duration is unknown, otherwise
#: `_SPARE_S + _TIMES * duration`. Limits are long, since other work may take most of the machine.
_UNKNOWN_S, _SPARE_S, _TIMES = 300, 60, 5

#: Blocks that contain the others, and the largest head dimension for which their Verilog is
#: generated quickly.
OUTER, SMALL = ("engine", "accelerator"), 16


def _enter(tree: Path, environment: Mapping[str, str], log: Path) -> None:
    """Set up the process as if it was started in `tree`, with its output in `log`."""
    gc.freeze()  # collections then skip the objects of the libraries, which stay anyway
    os.setsid()
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    os.chdir(tree)
    os.environ.update(environment)
    sys.dont_write_bytecode = False  # the copy is temporary, and is imported again and again
    numba.config.CACHE_DIR = environment["NUMBA_CACHE_DIR"]  # numba was imported before
    sys.path.insert(0, str(tree))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _processor_s() -> float:
    """Return the processor seconds of this process and of the children that it waited for."""
    return sum(os.times()[:4])


def _end_with_the_command() -> None:
    """Kill this process and its simulators once the command has ended, in whatever way."""
    command = parent_process()
    assert command is not None
    wait([command.sentinel])
    os.killpg(0, signal.SIGKILL)


class _Plugin:
    """Select the tests of a phase; record processor seconds, the first failure and a timeout.

    Phase 0 has the tests without a simulator and the benches of the smallest configuration; phase 1
    has the rest. Benches run on Icarus alone, which starts faster than Verilator builds. After
    `budget_s` processor seconds no further test begins.
    """

    def __init__(
        self,
        phase: int,
        known: Mapping[str, float],
        skip: set[str],
        only: str | None,
        budget_s: float,
    ) -> None:
        self._phase, self._known, self._skip, self._only = phase, known, skip, only
        self._budget_s, self._end = budget_s, _processor_s() + budget_s
        self.seconds: dict[str, float] = {}
        self.passed: list[str] = []
        self.failure, self.late = "", False

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        chosen = [item for item in items if self._wanted(item)]
        dropped = [item for item in items if item not in chosen]
        config.hook.pytest_deselected(items=dropped)
        items[:] = sorted(chosen, key=lambda item: self._known.get(item.nodeid, 0.0))

    def _wanted(self, item: Any) -> bool:
        if self._only is not None:
            return item.nodeid == self._only
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        simulator, config = parameters.get("simulator"), parameters.get("config")
        if simulator == "verilator" or item.nodeid in self._skip:
            return False
        if self._known.get(item.nodeid, 0.0) > self._budget_s:
            return False
        small = getattr(config, "name", "tiny") == "tiny"
        return self._phase == (0 if simulator is None or small else 1)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, object, object]:
        """Measure processor seconds of a test, setup and teardown included."""
        before = _processor_s()
        result = yield
        self.seconds[item.nodeid] = _processor_s() - before
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """Interrupt a test that takes too long."""
        if _processor_s() > self._end:
            pytest.skip("the tests before took long enough")
        known = self._known.get(item.nodeid)
        limit_s = _UNKNOWN_S if known is None else _SPARE_S + _TIMES * known

        def stop(*_: object) -> None:
            self.late = True
            pytest.fail(f"took longer than {limit_s:.0f} s")

        before = signal.signal(signal.SIGALRM, stop)
        signal.alarm(int(limit_s))
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.passed and report.when == "call":
            self.passed.append(report.nodeid)
        if report.failed and not self.failure:
            self.failure = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failure:
            self.failure = report.nodeid


def _hide_verilator() -> None:
    """Skip tests that build with Verilator, which takes longer than all other tests of a block."""

    def verilator() -> None:
        pytest.skip("Verilator builds too slowly")

    with suppress(ImportError):
        toolchain = importlib.import_module("kvtq_hw.host.toolchain")
        toolchain.verilator = verilator  # type: ignore[attr-defined]


def run_tests(
    tree: Path,
    environment: Mapping[str, str],
    answer: Path,
    test_file: str,
    phase: int,
    known: Mapping[str, float],
    skip: set[str],
    only: str | None,
    budget_s: float,
) -> None:
    """Run tests of a file up to the first failure, and write the results to `answer`, as JSON.

    phase : phase whose tests are run, see `_Plugin`
    known : processor seconds of tests in earlier runs; the cheapest test runs first
    skip : tests that are not run
    only : if given, the one test that is run, whatever its phase
    budget_s : processor seconds after which no further test begins
    """
    _enter(tree, environment, answer.with_suffix(".log"))
    _hide_verilator()
    plugin = _Plugin(phase, known, skip, only, budget_s)
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # libraries are imported
    status = pytest.main([*arguments, test_file], plugins=[plugin])
    failure = plugin.failure
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not failure:
        failure = test_file
    result = {"failure": failure, "late": plugin.late, "passed": plugin.passed}
    answer.write_text(json.dumps(result | {"seconds": plugin.seconds}), "utf-8")


def hardware(
    tree: Path,
    environment: Mapping[str, str],
    answer: Path,
    blocks: list[str],
    one: bool,
    expected: Mapping[str, str] | None,
) -> None:
    """Write hashes of Verilog and manifests to `answer`, as JSON, up to the first unexpected hash.

    Each block is generated in every configuration that the tests' matrix or a preset names,
    smallest first; with `one`, in the first configuration only. The engine and the accelerator,
    which contain the other blocks, are generated in small configurations only, unless no other
    block is to be generated.
    """
    _enter(tree, environment, answer.with_suffix(".log"))
    sys.path.insert(0, str(tree / "tests"))
    from kvtq_hw.contract.config import EngineConfig, load_config, preset_names
    from rtl.blocks import blocks_of, create_block, module_name
    from rtl.manifest import manifest
    from rtl.verilog import emit

    matrix = importlib.import_module("bench_matrix")
    tables = [table for table in vars(matrix).values() if isinstance(table, dict)]
    values = [value for table in tables for value in table.values()]
    presets = [load_config(name) for name in preset_names()]
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
