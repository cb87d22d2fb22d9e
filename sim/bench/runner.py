"""Building and running cocotb benches: one bench on one simulator with one configuration.

Builds are cached by content under ``<build folder>/<simulator>-<block>-<key>``, where the key is a
hash of the Verilog, the tools' versions and the options. File locks let several processes share one
build folder::

    >>> from kvtq_hw.contract.config import load_config
    >>> result = run_bench("packer", load_config("tiny"), "icarus", seed=1, folder=Path("build"))
    >>> result.failed
    ()
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from amaranth.hdl import Shape
from amaranth.lib import wiring
from cocotb_tools.runner import Runner, get_runner
from filelock import FileLock

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import disk_errors
from kvtq_hw.host.toolchain import Tool, find_simulator
from rtl.blocks import create_block, module_name
from rtl.verilog import lint_waivers, port_members
from sim.bench.axi_checker import WATCHED_VARIABLE, unwatched
from sim.bench.bench import CONFIG_VARIABLE
from sim.bench.coverage import TABLE
from sim.bench.wave_names import save_view, value_names, with_text
from sim.verilated.object_cache import launcher
from sim.verilated.verilog_cache import cached_verilog

__all__ = ["BenchError", "BenchResult", "CaseResult", "run_bench"]


# The runner makes every signal public by default; public ports (see `_public_ports`) suffice and
# simulate much faster.
_VERILATOR_ARGUMENTS = ("--no-public-flat-rw", "-O3")


# Property of a test in cocotb's results in which no time passed.
_NO_TIME = "properties/property[@name='sim_time_duration'][@value='0.0']"


class BenchError(UserError, RuntimeError):
    """Raised when a bench does not build or leaves no results; the message names the log."""


@dataclass(frozen=True)
class CaseResult:
    """Result of one cocotb test: `message` describes the failure, empty for a test that passed.

    simulated : whether simulated time passed in the test
    """

    name: str
    passed: bool
    seconds: float
    message: str
    simulated: bool = True


@dataclass(frozen=True)
class BenchResult:
    """Results of one run of a bench; `waves` is None unless waves were requested."""

    block: str
    simulator: str
    config: EngineConfig
    seed: int
    tests: tuple[CaseResult, ...]
    log: Path
    waves: Path | None

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """Return the tests that did not pass."""
        return tuple(test for test in self.tests if not test.passed)


@disk_errors("build folder")
def run_bench(
    block: str,
    config: EngineConfig,
    simulator: str,
    *,
    seed: int,
    folder: Path,
    waves: bool = False,
    testcase: str | None = None,
    module: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> BenchResult:
    """Build the bench of one block, unless the cache has it, and run it.

    Parameters
    ----------
    block : str
        One of `rtl.blocks.BLOCKS`; the bench is the cocotb module ``sim.benches.<block>``.
    simulator : str
        "verilator" or "icarus".
    seed : int
        cocotb's random seed: the same seed repeats the run.
    folder : Path
        Build folder, with the build cache and one folder per run with log, results and waves.
    waves : bool
        Record all signals, as FST on Icarus and VCD on Verilator (its FST needs headers of a
        library), with names of states and operations as text (`sim.bench.wave_names`) and a view
        for GTKWave.
    testcase : str, optional
        Run only the tests whose names end with this text.
    module : str, optional
        Cocotb module to run instead of the block's bench.
    variables : Mapping[str, str], optional
        Environment variables of the run.

    Raises
    ------
    kvtq_hw.contract.errors.UserError
        Unknown block or simulator, the simulator is not installed, or the folder cannot be written.
    BenchError
        The build failed, the run left no results or ran no test, or a test did not watch every AXI
        port.
    """
    tool = find_simulator(simulator)
    component = create_block(block, config)
    module = module or f"sim.benches.{block}"
    name = block if module == f"sim.benches.{block}" else module.rpartition(".")[2]
    run = (folder / "runs" / f"{name}-{config.digest()[:12]}-{simulator}-{seed}").resolve()
    run.mkdir(parents=True, exist_ok=True)
    log, results = run / "simulation.log", run / "results.xml"
    waves_file = run / ("dump.vcd" if simulator == "verilator" else "dump.fst")
    watched = run / "watched.txt"
    with _found(tool), FileLock(run / "lock"):
        runner = get_runner(simulator)
        build = _build(runner, tool, component, block, config, folder, waves)
        for stale in (results, log, waves_file, watched, run / TABLE):
            stale.unlink(missing_ok=True)
        trouble = ""
        try:
            runner.test(
                test_module=module,
                hdl_toplevel=module_name(block),
                hdl_toplevel_lang="verilog",
                seed=seed,
                testcase=testcase,
                plusargs=[f"+dumpfile_path={waves_file}"] if waves else [],
                extra_env={
                    CONFIG_VARIABLE: config.model_dump_json(),
                    WATCHED_VARIABLE: str(watched),
                    # otherwise cocotb recompiles every import, even torch, for better assertions
                    "COCOTB_REWRITE_ASSERTION_FILES": "",
                    **(variables or {}),
                },
                waves=waves,
                build_dir=build,
                test_dir=run,
                results_xml=str(results),
                log_file=log,
            )
        except (RuntimeError, SystemExit) as end:  # nonzero exit status of the simulator
            trouble = str(end)
        tests = read_results(results, log)
    if trouble and all(test.passed for test in tests):
        raise BenchError(f"{block} on {simulator} passed, but: {trouble}; log: {log}")
    driven = [test for test in tests if test.simulated]
    missing = unwatched(watched, component, len(driven))
    if missing and all(test.passed for test in tests):
        raise BenchError(
            f"{block} on {simulator}: no checker on {', '.join(missing)} in every test; "
            f"a bench begins with sim.bench.axi_checker.watch_buses; log: {log}"
        )
    if waves and not waves_file.is_file():
        raise BenchError(f"{block} on {simulator} wrote no waves to {waves_file}; log: {log}")
    if waves:
        top = module_name(block)
        save_view(run / "dump.gtkw", waves_file, component, top, value_names(component, top))
    return BenchResult(block, simulator, config, seed, tests, log, waves_file if waves else None)


def read_results(results: Path, log: Path) -> tuple[CaseResult, ...]:
    """Read cocotb's results file.

    Raises
    ------
    BenchError
        When the file is missing or is not XML, when no test was executed, or when the log's summary
        is missing or has other counts. None of these counts as a pass.
    """
    try:
        root = ElementTree.parse(results).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise BenchError(f"no readable results of the simulation ({error}); log: {log}") from None
    tests = []
    for case in root.iter("testcase"):
        if case.find("skipped") is not None:
            continue
        problem = case.find("failure")
        if problem is None:
            problem = case.find("error")
        tests.append(
            CaseResult(
                name=case.get("name", ""),
                passed=problem is None,
                seconds=float(case.get("time", "0")),
                message="" if problem is None else _message(problem),
                simulated=case.find(_NO_TIME) is None,
            )
        )
    if not tests:
        raise BenchError(f"the simulation executed no test; log: {log}")
    summary = re.search(r"TESTS=(\d+) ", log.read_text("utf-8", errors="replace"))
    if summary is None or int(summary[1]) != len(tests):
        counted = summary[1] if summary else "no"
        raise BenchError(f"results hold {len(tests)} tests, the log {counted}; log: {log}")
    return tuple(tests)


def _message(problem: ElementTree.Element) -> str:
    """Return the exception's own text, without the traceback."""
    text = problem.get("message") or (problem.text or "").strip().splitlines()[-1:] or "failed"
    return text if isinstance(text, str) else text[0]


def _build(
    runner: Runner,
    tool: Tool,
    component: wiring.Component,
    block: str,
    config: EngineConfig,
    folder: Path,
    waves: bool,
) -> Path:
    """Build the simulation unless the cache has it; return its folder."""
    top = module_name(block)
    verilog = cached_verilog(block, config, folder / "verilog", all_names=waves)
    if waves:
        verilog = with_text(verilog, value_names(component, top))
    files = {f"{top}.v": verilog}
    arguments: list[str] = []
    if tool.name == "verilator":
        files = {"lint.vlt": lint_waivers(), "ports.vlt": _public_ports(component, top), **files}
        arguments = list(_VERILATOR_ARGUMENTS)
    key = _digest(tool.description, metadata.version("cocotb"), waves, *arguments, *files.values())
    build = (folder / f"{tool.name}-{block}-{key}").resolve()
    done = build / "done"
    with FileLock(f"{build}.lock"):
        if done.exists():
            return build
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        for name, text in files.items():
            (build / name).write_text(text, encoding="utf-8")
        log = build / "build.log"
        try:
            # the pip package's makefiles lack the option for a large model's precompiled header
            os.environ["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include"
            os.environ["OBJCACHE"] = launcher(folder / f"objects-{_digest(tool.description)}")
            runner.build(
                sources=[build / name for name in files],
                hdl_toplevel=top,
                build_dir=build,
                build_args=arguments,
                timescale=("1ns", "1ps"),
                waves=waves,
                log_file=log,
            )
        except RuntimeError as error:
            problem = f"{block} does not build on {tool.name} ({error}); log: {log}"
            raise BenchError(problem) from None
        done.touch()
    return build


def _public_ports(component: wiring.Component, top: str) -> str:
    """Return a Verilator control file that makes only ports public, so the rest is optimised."""
    ports = ["clk", "rst"]
    for port, member in port_members(component).items():
        if Shape.cast(member.shape).width:
            ports.append(port)
    lines = [f'public_flat_rw -module "{top}" -var "{port}"' for port in ports]
    return "\n".join(["`verilator_config", *lines, ""])


def _digest(*parts: object) -> str:
    """Hash the parts' texts, short enough for a folder's name."""
    text = "\0".join(map(str, parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _found(tool: Tool) -> Iterator[None]:
    """Set the environment in which cocotb's runner finds the tool.

    The variable with the name of a running pytest test is hidden: with this variable the runner
    would exit at a failure instead of leaving the results to the caller.
    """
    before = dict(os.environ)
    os.environ.update(tool.environment())
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
