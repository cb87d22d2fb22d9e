"""The rules of the house: who imports whom, what is declared, what has a twin."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kvtq_hw.commands.frame.cli import EXTRA_OF_MODULE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("golden", "kvtq_hw", "rtl", "sim")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def imports(source: str, package: str) -> Iterator[tuple[str, bool]]:
    """Yield each module that a file of `package` imports, and whether it does so when imported."""
    tree = ast.parse(source)
    inside = {
        node
        for later in ast.walk(tree)
        if isinstance(later, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(later, ast.If) and ast.unparse(later.test) == "TYPE_CHECKING")
        for node in ast.walk(later)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*parts, *filter(None, [node.module])])
            # `from golden import engine` imports golden.engine as well.
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield name, node not in inside


def belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def sources() -> list[Path]:
    return [
        file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py")
    ]


# --- who imports whom -----------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a checkout, with the contracts of its pyproject.toml."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and pyproject.toml in a folder where they may be spoiled."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({}, ""),
        ({"rtl/axi.py": "import golden.planes"}, "rtl.axi -> golden.planes"),
        (
            {
                "rtl/axi.py": "def f():\n    import rtl.between",
                "rtl/between.py": "from golden import planes",
            },
            "rtl.between -> golden.planes",
        ),
        ({"rtl/axi.py": "import kvtq_hw.host.toolchain"}, "rtl.axi -> kvtq_hw.host.toolchain"),
        ({"golden/planes.py": "import kvtq_hw.estimates.traffic"}, "golden.planes -> kvtq_hw."),
        ({"kvtq_hw/contract/codes.py": "import golden.planes"}, "kvtq_hw.contract.codes -> golden"),
        ({"kvtq_hw/host/sources.py": "import rtl.blocks"}, "kvtq_hw.host.sources -> rtl.blocks"),
        (
            {"sim/bench/cases.py": "import kvtq_hw.commands.area"},
            "sim.bench.cases -> kvtq_hw.commands.area",
        ),
        ({"golden/cache/layer.py": "import golden.attend.attention"}, "golden.cache"),
    ],
    ids=str,
)
def test_import_linter_holds_the_rooms(copy: Path, files: dict[str, str], chain: str) -> None:
    """The rooms of docs/architecture.md: `make lint` finds an arrow up, through others too."""
    before = {name: (copy / name).read_text("utf-8") for name in files if (copy / name).exists()}
    for name, line in files.items():
        (copy / name).write_text(before.get(name, "") + f"\n{line}\n", "utf-8")
    try:
        run = lint_imports(copy)
    finally:
        for name in files:
            (copy / name).unlink()
        for name, text in before.items():
            (copy / name).write_text(text, "utf-8")
    assert (run.returncode == 0) == (not files), run.stdout + run.stderr
    assert chain in run.stdout


# --- what is declared -----------------------------------------------------------------------------

#: Name of a module where it is not that of its distribution.
DISTRIBUTION = {
    "cocotb_tools": "cocotb",
    "cocotbext": "cocotbext-axi",
    "systemrdl": "systemrdl-compiler",
    "vcd": "pyvcd",
}

#: What simulates netlists for `kvtq-hw power`; the command imports it when called.
POWER = {
    f"kvtq_hw.estimates.{name}" for name in ("cell_energy", "gates", "gate_simulation", "power")
}


def relies_on(module: str) -> tuple[str, ...]:
    """The extras, beside the base install, that must be there when a module is imported."""
    if belongs(module, "sim.soc"):
        return ("golden", "sim", "soc")
    if module in POWER or belongs(module, "sim"):
        return ("golden", "sim")
    return ("golden",) if belongs(module, "golden") else ()


def declared(*extras: str) -> set[str]:
    """Names of the distributions of the base install and of extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


FILE_OF = {module_of(file): file for file in sources()}


@cache
def imported(module: str, later: bool = False) -> frozenset[str]:
    """Names that a file imports when it is imported itself, or `later`, inside functions."""
    file = FILE_OF[module]
    names = imports((ROOT / file).read_text("utf-8"), ".".join(file.parts[:-1]))
    return frozenset(name for name, at_once in names if at_once != later)


def loaded(module: str) -> set[str]:
    """A module and all of ours that are imported with it."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and name in FILE_OF:
            found.add(name)
            waiting += imported(name)
    return found


def undeclared(names: Iterable[str], *extras: str) -> set[str]:
    """Libraries that neither the base install nor the extras bring."""
    libraries = {name.partition(".")[0] for name in names} - set(PACKAGES)
    return {
        name
        for name in libraries - sys.stdlib_module_names
        if canonicalize_name(DISTRIBUTION.get(name, name)) not in declared(*extras)
    }


@pytest.mark.parametrize("module", sorted(FILE_OF))
def test_libraries_are_declared(module: str) -> None:
    """A module needs what its folder's extras bring; inside functions, what any extra brings."""
    at_once = {name for inner in loaded(module) for name in imported(inner)}
    assert undeclared(at_once, *relies_on(module)) == set()
    assert undeclared(imported(module, later=True), *EXTRAS) == set()


def test_extra_named_by_the_command_line_brings_the_module() -> None:
    for module, extra in EXTRA_OF_MODULE.items():
        distribution = canonicalize_name(DISTRIBUTION.get(module, module))
        assert distribution in declared(extra) - declared()
    named = {canonicalize_name(DISTRIBUTION.get(module, module)) for module in EXTRA_OF_MODULE}
    missing = declared("golden", "sim") - declared() - named
    assert missing == set()


def test_each_dependency_carries_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        assert re.search(rf'^ +"{re.escape(line)}", *# \S.{{10,}}$', text, re.MULTILINE), line


def test_each_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        requirement = Requirement(line)
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{line}: pinned to {pin}"


# --- how compiled loops are entered ---------------------------------------------------------------

#: The only file that may name Numba: its `compiled` checks what a loop is given.
DOOR = Path("golden/compiled.py")


def ways_around(source: str) -> list[str]:
    """Names by which a file could call compiled code that nobody checks."""
    tree = ast.parse(source)
    found = [name for name, _ in imports(source, "") if belongs(name, "numba")]
    parts, inside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(entry).partition("(")[0] for entry in node.decorator_list}
            if "loop_part" in decorators:
                parts.add(node.name)
            if decorators & {"compiled", "loop_part"}:
                inside |= set(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node not in inside and node.id in parts:
            found.append(node.id)
        if isinstance(node, ast.Attribute) and node.attr in ("__wrapped__", "py_func", *parts):
            found.append(node.attr)
    return found


@pytest.mark.parametrize("file", [file for file in sources() if file != DOOR], ids=str)
def test_compiled_loops_are_entered_through_the_door(file: Path) -> None:
    assert ways_around((ROOT / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import numba", ["numba"]),
        ("def f():\n    from numba import njit", ["numba", "numba.njit"]),
        ("import numba.typed as t", ["numba.typed"]),
        ("@loop_part\ndef _f(x): ...\n_f(1)", ["_f"]),
        ("@loop_part\ndef _f(x): ...\ndef g():\n    return _f", ["_f"]),
        ("@loop_part\ndef _f(x): ...\n@compiled(x=int)\ndef _g(x):\n    return _f(x)", []),
        ("@compiled(x=int)\ndef _g(x): ...\n_g(1)", []),
        ("import a\na._g.__wrapped__(1)", ["__wrapped__"]),
    ],
)
def test_ways_around_the_door_are_found(source: str, found: list[str]) -> None:
    assert ways_around(source) == found


# --- what has a twin ------------------------------------------------------------------------------


BLOCKS = sorted(file.stem for file in (ROOT / "sim" / "benches").glob("[!_]*.py"))

#: Blocks that store and order what others compute: there is nothing for a golden twin to say.
COMPUTES_NOTHING = {"control", "query_buffer", "record_reader", "record_writer", "sequencer"}


@pytest.mark.parametrize("block", BLOCKS)
def test_block_has_one_name_in_four_places(block: str) -> None:
    twins = [f"rtl/{block}.py", f"tests/test_{block}.py"]
    if block not in COMPUTES_NOTHING:
        twins.append(f"golden/{block}.py")
    assert [twin for twin in twins if not (ROOT / twin).is_file()] == []


@pytest.mark.parametrize("block", BLOCKS)
def test_bench_is_run_by_the_test_of_its_name(block: str) -> None:
    """Before an hour of tests: `scripts/check_tests.py` asks their results for it."""
    tree = ast.parse((ROOT / "tests" / f"test_{block}.py").read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    benches = [call.args[0] for call in calls if ast.unparse(call.func) == "check_bench"]
    assert block in {bench.value for bench in benches if isinstance(bench, ast.Constant)}


# --- how hardware is wired ------------------------------------------------------------------------

#: Files that look attributes up by name: classes of blocks, and what a configuration derives.
LOOK_UP = {"rtl/blocks.py", "rtl/manifest.py"}


def hidden_wires(source: str) -> list[str]:
    """List what no search for a port's name finds: look-ups by name, and queues without a type."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    found = [ast.unparse(node) for node in calls if ast.unparse(node.func) == "getattr"]
    return found + [name for name, _ in imports(source, "rtl") if name == "amaranth.lib.fifo"]


@pytest.mark.parametrize("file", [f for f in sources() if f.parts[0] == "rtl"], ids=str)
def test_wires_are_found_by_their_names(file: Path) -> None:
    found = hidden_wires((ROOT / file).read_text("utf-8"))
    if file.as_posix() in LOOK_UP:
        assert len(found) == 1
    else:
        assert found == (["amaranth.lib.fifo"] if file == Path("rtl/streams.py") else [])


def test_hidden_wires_are_seen() -> None:
    source = "from amaranth.lib.fifo import SyncFIFO\nwire = getattr(port, f'{side}_tasks')\n"
    assert hidden_wires(source) == ["getattr(port, f'{side}_tasks')", "amaranth.lib.fifo"]


# --- files ----------------------------------------------------------------------------------------

#: What may write or parse by itself: the module that does it for all, and those that exchange
#: files with a tool in a folder of their own, which nobody reads afterwards.
OWN_FILES = {
    "kvtq_hw/contract/files.py",
    "kvtq_hw/estimates/fpga.py",
    "kvtq_hw/estimates/gates.py",
    "kvtq_hw/estimates/place_and_route.py",
    "kvtq_hw/estimates/synthesis.py",
    "kvtq_hw/estimates/timing.py",
    "golden/llm/models.py",
    "rtl/combinational_paths.py",
    "kvtq_hw/estimates/netlist.py",
    "rtl/verilog.py",
    "sim/verilated/quick_verilog.py",
    "sim/bench/axi_checker.py",
    "sim/bench/coverage.py",
    "sim/proofs/formal.py",
    "sim/bench/recording.py",
    "sim/bench/runner.py",
    "sim/soc/litex_system.py",
    "sim/soc/program.py",
    "sim/soc/simulation.py",
    "sim/verilated/library.py",
}
WRITING = {"write_text", "write_bytes", "save_file"}
PARSING = {("json", "load"), ("json", "loads"), ("tomllib", "load"), ("tomllib", "loads")}


def own_files(source: str) -> list[str]:
    """Calls that write a file, or parse text, without `kvtq_hw.contract.files`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "save_file":
            found.append(function.id)
        if not isinstance(function, ast.Attribute):
            continue
        parser = function.value.id if isinstance(function.value, ast.Name) else ""
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        opens = function.attr == "open" and any(str(mode)[:1] in "wax" for mode in modes if mode)
        if function.attr in WRITING or opens or (parser, function.attr) in PARSING:
            found.append(ast.unparse(function))
    return found


@pytest.mark.parametrize("file", [f for f in sources() if str(f) not in OWN_FILES], ids=str)
def test_files_are_read_and_written_in_one_place(file: Path) -> None:
    """What a user may have spoiled is checked there, and what the disk may spoil is whole there."""
    found = own_files((ROOT / file).read_text("utf-8"))
    allowed = {
        # the shipped presets; what has just been written, as pages see it
        "kvtq_hw/contract/config.py": ["tomllib.loads"],
        "kvtq_hw/commands/report.py": ["json.loads"],
        # into the file that takes the other's place when it is whole
        "sim/bench/wave_names.py": ["scratch.open"],
    }
    assert found == allowed.get(str(file), [])


def test_own_files_are_found() -> None:
    source = "path.write_text(x); json.loads(x); save_file(x); path.open('w'); path.open('rb')"
    assert own_files(source) == ["path.write_text", "json.loads", "save_file", "path.open"]


# --- how long a function may be -------------------------------------------------------------------


def test_only_elaborate_is_longer_than_ruff_allows() -> None:
    """Hardware in one piece says so on its line; everything else is cut where it is too long."""
    excused = re.compile(r"noqa:.*(C901|PLR0915)")
    lines = [
        (file, line)
        for package in (*PACKAGES, "scripts", "tests", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
        for line in file.read_text("utf-8").splitlines()
        if excused.search(line) and file != Path(__file__)
    ]
    assert lines
    assert [entry for entry in lines if "def elaborate(" not in entry[1]] == []
