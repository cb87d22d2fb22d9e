"""The rules of the house: who imports whom, what is declared, what has a twin."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kvtq_hw.cli import EXTRA_OF_MODULE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("golden", "kvtq_hw", "rtl", "sim")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

#: Modules of kvtq_hw that are not ground: they call everything, and nothing below calls them.
ABOVE_GROUND = (
    "kvtq_hw.cli",
    "kvtq_hw.crash",
    "kvtq_hw.flows",
    "kvtq_hw.estimates",
    "kvtq_hw.report",
    "kvtq_hw.session",
    "kvtq_hw.__main__",
)


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


def violations(source: str, file: Path) -> list[str]:
    """Imports of a file, named relative to the checkout, that the rule of the house forbids."""
    package = ".".join(file.with_suffix("").parts[:-1])
    module = f"{package}.{file.stem}"
    forbidden: tuple[str, ...] = ()
    if file.parts[0] == "golden":
        forbidden = ("rtl", "sim", *ABOVE_GROUND)
    elif file.parts[0] == "rtl":
        forbidden = ("golden", "sim", *ABOVE_GROUND)
    elif file.parts[0] == "sim":
        forbidden = ABOVE_GROUND
    elif not any(belongs(module, above) for above in ABOVE_GROUND):
        forbidden = ("golden", "rtl", "sim", *ABOVE_GROUND)
    return [
        f"{file} imports {name}"
        for name, _ in imports(source, package)
        if any(belongs(name, other) for other in forbidden)
    ]


def sources() -> list[Path]:
    return [
        file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py")
    ]


# --- who imports whom -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", sources(), ids=str)
def test_import_rule(file: Path) -> None:
    assert violations((ROOT / file).read_text("utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("golden/a.py", "import rtl", ["rtl"]),
        ("golden/a.py", "def f():\n    from rtl.engine import Engine", ["rtl.engine"]),
        ("golden/a.py", "import sim.bench.runner as r", ["sim.bench.runner"]),
        ("rtl/a.py", "from golden import engine", ["golden"]),
        ("rtl/a.py", "from kvtq_hw import flows", ["kvtq_hw.flows"]),
        ("rtl/a.py", "from . import layouts\nimport kvtq_hw.config\nimport rtlib", []),
        ("sim/benches/a.py", "from ...golden import x", []),
        ("sim/benches/a.py", "from kvtq_hw.cli import run", ["kvtq_hw.cli"]),
        ("sim/a.py", "import golden.engine, rtl.engine", []),
        ("kvtq_hw/config.py", "import golden", ["golden"]),
        ("kvtq_hw/config.py", "from .flows import decode", ["kvtq_hw.flows"]),
        ("kvtq_hw/flows/decode.py", "import golden, rtl, sim", []),
    ],
)
def test_import_rule_finds(file: str, source: str, found: list[str]) -> None:
    lines = violations(source, Path(file))
    assert [line.split()[-1] for line in lines][: len(found) or None] == found


# --- what is declared -----------------------------------------------------------------------------

#: Name of a module where it is not that of its distribution.
DISTRIBUTION = {
    "cocotb_tools": "cocotb",
    "cocotbext": "cocotbext-axi",
    "systemrdl": "systemrdl-compiler",
    "vcd": "pyvcd",
}

#: The extras, beside the base install, that the files of a folder may rely on at import.
RELIES_ON = {"kvtq_hw": (), "rtl": (), "golden": ("golden",), "sim": ("golden", "sim")}


def declared(*extras: str) -> set[str]:
    """Names of the distributions of the base install and of extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@pytest.mark.parametrize("file", sources(), ids=str)
def test_libraries_are_declared(file: Path) -> None:
    """A file needs what its folder's extras bring; inside functions, what any extra brings."""
    package = ".".join(file.parts[:-1])
    for name, when_imported in imports((ROOT / file).read_text("utf-8"), package):
        module = name.partition(".")[0]
        if module in PACKAGES or module in sys.stdlib_module_names:
            continue
        allowed = declared(*RELIES_ON[file.parts[0]]) if when_imported else declared(*EXTRAS)
        assert canonicalize_name(DISTRIBUTION.get(module, module)) in allowed, f"{file}: {name}"


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


# --- files ----------------------------------------------------------------------------------------

#: What may write or parse by itself: the module that does it for all, and those that exchange
#: files with a tool in a folder of their own, which nobody reads afterwards.
OWN_FILES = {
    "kvtq_hw/files.py",
    "kvtq_hw/estimates/fpga.py",
    "kvtq_hw/estimates/gates.py",
    "kvtq_hw/estimates/place_and_route.py",
    "kvtq_hw/estimates/synthesis.py",
    "kvtq_hw/estimates/timing.py",
    "golden/models.py",
    "rtl/combinational_paths.py",
    "rtl/netlist.py",
    "rtl/verilog.py",
    "sim/bench/axi_checker.py",
    "sim/bench/coverage.py",
    "sim/proofs/formal.py",
    "sim/bench/recording.py",
    "sim/bench/runner.py",
    "sim/verilated/library.py",
}
WRITING = {"write_text", "write_bytes", "save_file"}
PARSING = {("json", "load"), ("json", "loads"), ("tomllib", "load"), ("tomllib", "loads")}


def own_files(source: str) -> list[str]:
    """Calls that write a file, or parse text, without `kvtq_hw.files`."""
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
        "kvtq_hw/config.py": ["tomllib.loads"],
        "kvtq_hw/flows/report.py": ["json.loads"],
        # into the file that takes the other's place when it is whole
        "sim/bench/wave_names.py": ["scratch.open"],
    }
    assert found == allowed.get(str(file), [])


def test_own_files_are_found() -> None:
    source = "path.write_text(x); json.loads(x); save_file(x); path.open('w'); path.open('rb')"
    assert own_files(source) == ["path.write_text", "json.loads", "save_file", "path.open"]
