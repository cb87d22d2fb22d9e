"""Mutation testing's own tests: what is changed, what is not, and which verdict follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from mutants import command, judge  # noqa: E402
from mutants.drawing import Mutant, candidates, draw, sources  # noqa: E402
from mutants.judge import Judge, Verdict, listed_equivalents, stale_equivalents  # noqa: E402
from mutants.operators import OWN, operator_names  # noqa: E402
from mutants.report import markdown, summary  # noqa: E402
from mutants.suites import Imports  # noqa: E402
from mutants.workshop import Workshop, fork_server  # noqa: E402

# --- which mutants there are ----------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_own_operators_make_their_examples(name: str) -> None:
    for example in OWN[name].examples():
        found = mutate_code(example.pre_mutation_code, OWN[name](), example.occurrence)
        assert found == example.post_mutation_code


def test_operators_are_found_by_cosmic_rays_plugins() -> None:
    for name in operator_names():
        assert get_operator(name).__name__ == name.partition("/")[2]


def mutants_of(tmp_path: Path, source: str) -> set[str]:
    (tmp_path / "toy.py").write_text(source)
    return {mutant.after for mutant in candidates(tmp_path, "toy.py")}


@pytest.mark.parametrize(
    "source",
    [
        '__all__ = ["a" + "b"]',
        "x: int | str",
        "def f(a: int | None, *b: 3) -> int | None:\n    c: int | 7",
        "class A:\n    a: Literal[1] | None",
        "@cache(size=3)\ndef f():\n    pass",
        'def f(a):\n    raise ValueError(f"a is {a}, allowed are {1 + 2}")',
        'text = f"{a + 1:3d}"',
        "if TYPE_CHECKING:\n    a = 1",
        "class P(Protocol):\n    def f(self):\n        return 1",
        "class A:\n    @abstractmethod\n    def f(self):\n        return 1",
        '"""Text with 3 < 4."""',
    ],
)
def test_what_is_no_behaviour_is_not_mutated(tmp_path: Path, source: str) -> None:
    assert mutants_of(tmp_path, source) == set()


def test_conditions_statements_and_shapes_are_mutated(tmp_path: Path) -> None:
    source = (
        "with m.If(a & ~b):\n    m.d.sync += c.eq(d < 2)\nclass S(data.Struct):\n    field: 5\n"
    )
    assert mutants_of(tmp_path, source) == {
        "with m.If(~b):",
        "with m.If(a):",
        "with m.If(a & b):",
        "with m.If(a | ~b):",
        "with m.If((a & ~b) == 0):",
        "pass",
        *(f"m.d.sync += c.eq(d {what})" for what in ("<= 2", ">= 2", "< 3", "< 1")),
        "field: 6",
        "field: 4",
    }


def test_a_mutant_knows_where_it_is(tmp_path: Path) -> None:
    source = "class A:\n    def f(self):\n        def g():\n            return 1 - x\n"
    (tmp_path / "toy.py").write_text(source)
    mutant, *_ = candidates(tmp_path, "toy.py")
    found = (mutant.line, mutant.where, mutant.before, mutant.after)
    assert found == (4, "A.f.g", "return 1 - x", "return 1 + x")
    assert mutant.apply(source) == source.replace("-", "+")


def test_the_draw_follows_the_seed_and_grows_at_its_end() -> None:
    files = ["golden/scale.py", "rtl/adder_tree.py"]
    drawn = draw(ROOT, files, 3, 20)
    assert draw(ROOT, files, 3, 20) == drawn
    assert draw(ROOT, files, 3, 7) == drawn[:7]
    assert draw(ROOT, files, 4, 20) != drawn
    assert len({mutant.key for mutant in drawn}) == 20
    assert {mutant.file for mutant in drawn} == set(files)


def test_all_of_the_contract_is_drawn_from() -> None:
    files = sources(ROOT)
    assert {
        "rtl/scheduler.py",
        "golden/study/baselines/kivi.py",
        "kvtq_hw/contract/codes.py",
    } < set(files)
    assert sources(ROOT, ["rtl"]) == [file for file in files if file.startswith("rtl/")]
    assert sources(ROOT, ["golden/scale.py", "golden/scale.py"]) == ["golden/scale.py"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "sim"], "mutants: --only sim: nothing there is mutated; allowed are rtl, "),
        (["--only", "rtl/none.py"], "mutants: --only rtl/none.py: nothing there is mutated; "),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, capsys) -> None:
    assert command.main(arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith(line)
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--sample", "0"], ["--jobs", "x"], ["--seed", "1.5"]])
def test_bad_numbers_are_refused(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
    assert arguments[1] in capsys.readouterr().err.splitlines()[-1]


# --- which tests are asked ------------------------------------------------------------------------


def test_own_tests_come_first_then_blocks_that_contain_it() -> None:
    imports = Imports(ROOT)
    found = imports.tests_of("rtl/key_lanes.py")
    assert found[0] == "tests/test_key_lanes.py"
    assert "tests/test_engine.py" in found
    assert "tests/test_scale.py" not in found
    assert imports.tests_of("rtl/adder_tree.py")[0] in imports.tests_of("rtl/key_lanes.py")
    assert imports.blocks_of("rtl/key_lanes.py") == ["key_lanes", "accelerator", "engine"]
    assert "golden/key_lanes.py" in imports.closure("tests/test_key_lanes.py")  # by its bench


def test_a_digest_follows_what_the_verdict_rests_on(tmp_path: Path) -> None:
    toy = checkout(tmp_path)
    before = Imports(toy).digest(["tests/test_toy.py"])
    (toy / "rtl" / "half.py").write_text("# another\n")
    assert Imports(toy).digest(["tests/test_toy.py"]) == before
    (toy / "golden" / "toy.py").write_text("# another\n")
    assert Imports(toy).digest(["tests/test_toy.py"]) not in (before, "")
    assert Imports(toy).digest(["tests/test_gone.py"]) == ""


def test_compiled_functions_and_their_constants_are_known() -> None:
    imports = Imports(ROOT)
    assert imports.compiled("golden/cache/packed_quantizer.py")
    assert imports.compiled("kvtq_hw/contract/config.py")  # `VECTOR_MAX`, in golden/conditioning.py
    assert not imports.compiled("golden/scale.py")


# --- verdicts, on a toy ---------------------------------------------------------------------------

TOY = {
    "pyproject.toml": "",
    **{f"{name}/__init__.py": "" for name in ("golden", "rtl", "kvtq_hw", "sim")},
    "golden/toy.py": ("def double(x):\n    y = 2 * x\n    return max(y, 0)\n"),
    "tests/test_toy.py": (
        "from golden.toy import double\n\n\ndef test_double():\n    assert double(3) == 6\n"
    ),
    "golden/slow.py": (
        "import time\n\n\ndef wait(n):\n    while n:\n        time.sleep(0.1)\n        n -= 1\n"
    ),
    "tests/test_slow.py": (
        "from golden.slow import wait\n\n\ndef test_wait():\n    assert wait(1) is None\n"
    ),
    # what `mutants.trial.hardware` asks for, of text
    "rtl/half.py": (
        "class Half:\n    def __init__(self, config):\n"
        "        self.text = config.name * max(1, 2)\n        self.latency = 5\n"
    ),
    "rtl/blocks.py": (
        "from rtl.half import Half\n\n\ndef blocks_of(config):\n    return ('half',)\n\n\n"
        "def create_block(name, config):\n    return Half(config)\n\n\n"
        "def module_name(name):\n    return name\n"
    ),
    "rtl/verilog.py": "def emit(component, name, header):\n    return component.text\n",
    "rtl/manifest.py": (
        "def manifest(component, name, config, files):\n    return {'latency': component.latency}\n"
    ),
    "kvtq_hw/contract/config.py": (
        "class EngineConfig:\n    head_dim = lanes = 8\n    name = 'tiny'\n\n"
        "    def digest(self):\n        return self.name\n\n\n"
        "def load_config(name):\n    return EngineConfig()\n\n\n"
        "def preset_names():\n    return ['tiny']\n"
    ),
    "sim/benches/half.py": "",
    "tests/bench_matrix.py": (
        "from kvtq_hw.contract.config import EngineConfig\n\nCONFIGS = {'tiny': EngineConfig()}\n"
    ),
    "tests/test_half.py": "import rtl.half\n\n\ndef test_half():\n    assert rtl.half\n",
}


def checkout(folder: Path) -> Path:
    for name, text in TOY.items():
        (folder / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "toy" / name).write_text(text)
    subprocess.run(["git", "init", "-q", folder / "toy"], check=True)
    return folder / "toy"


@pytest.fixture
def toy_judge(tmp_path: Path) -> Judge:
    toy = checkout(tmp_path)
    (tmp_path / "unchanged").mkdir()
    workshop = Workshop(toy, tmp_path / "workshop", fork_server(["pytest"]))
    return Judge({}, tmp_path / "unchanged", Imports(toy), workshop)


def toy_mutant(file: str, after: str, folder: Path) -> Mutant:
    """The toy's mutant with this line."""
    (found,) = (m for m in candidates(folder / "toy", file) if m.after == after)
    return found


@pytest.mark.parametrize(
    ("name", "after", "outcome", "by"),
    [
        ("toy", "y = 3 * x", "killed", "tests/test_toy.py::test_double"),
        ("toy", "return max(y, -1)", "survived", ""),
        ("slow", "n -= 0", "timed out", "tests/test_slow.py"),
    ],
)
def test_verdicts(
    toy_judge: Judge, tmp_path: Path, monkeypatch, name: str, after: str, outcome: str, by: str
) -> None:
    if outcome == "timed out":
        monkeypatch.setattr(judge, "_LIMIT_S", 20)
    file = f"golden/{name}.py"
    verdict = toy_judge.judge(toy_mutant(file, after, tmp_path))
    assert (verdict.outcome, verdict.by) == (outcome, by)
    assert verdict.asked == (f"tests/test_{name}.py",)
    for place in ("toy", "workshop/tree"):  # neither is left changed
        assert (tmp_path / place / file).read_text() == TOY[file]


def test_same_hardware_is_equivalent_and_another_latency_is_not(
    toy_judge: Judge, tmp_path: Path
) -> None:
    same = toy_judge.judge(
        toy_mutant("rtl/half.py", "self.text = config.name * max( 0, 2)", tmp_path)
    )
    assert (same.outcome, same.by) == ("equivalent", "generates the same Verilog")
    other = "self.text = config.name * max(1, 3)"
    for after in (other, "self.latency = 6"):
        assert toy_judge.judge(toy_mutant("rtl/half.py", after, tmp_path)).outcome == "survived"


@pytest.mark.parametrize(
    "text", ["import os\n\n\ndef test_double():\n    os._exit(1)\n", "import nothing\n"]
)
def test_unchanged_sources_whose_tests_do_not_run_end_the_run(
    toy_judge: Judge, tmp_path: Path, text: str
) -> None:
    (tmp_path / "workshop" / "tree" / "tests" / "test_toy.py").write_text(text)
    with pytest.raises(RuntimeError, match=r"^tests/test_toy\.py does not run on the unchanged"):
        toy_judge.judge(toy_mutant("golden/toy.py", "y = 3 * x", tmp_path))


LISTED = """[[equivalent]]
file = "golden/toy.py"
where = "double"
line = "return max(y, 0)"
mutant = "return max(y, -1)"
reason = "y is not negative here"
"""


def test_equivalents_are_listed_by_their_text(tmp_path: Path) -> None:
    toy, path = checkout(tmp_path), tmp_path / "equivalent.toml"
    path.write_text(LISTED)
    assert list(listed_equivalents(path).values()) == ["y is not negative here"]
    assert stale_equivalents(toy, path) == []
    path.write_text(LISTED.replace("max(y, -1)", "max(y, -2)"))
    assert stale_equivalents(toy, path) == [
        "equivalent.toml: golden/toy.py, double: no mutant makes 'return max(y, -2)' of "
        "'return max(y, 0)'"
    ]
    path.write_text(LISTED.replace("toy.py", "gone.py"))
    assert len(stale_equivalents(toy, path)) == 1


def test_listed_equivalents_fit_the_sources() -> None:
    assert stale_equivalents(ROOT, command.EQUIVALENT) == []


def test_a_run_goes_on_where_it_ended(tmp_path: Path, monkeypatch, capsys) -> None:
    toy = checkout(tmp_path)
    (tmp_path / "equivalent.toml").write_text(LISTED)
    monkeypatch.setattr(command, "ROOT", toy)
    monkeypatch.setattr(command, "EQUIVALENT", tmp_path / "equivalent.toml")
    monkeypatch.setattr(command, "fork_server", lambda: fork_server(["pytest"]))
    arguments = ["--only", "golden/toy.py", "--sample", "50", "--seed", "2", "--jobs", "2"]
    assert command.main(arguments) == 0
    first = capsys.readouterr().out
    page = json.loads((toy / "build" / "mutants" / "mutants.json").read_text())
    (area,) = page["areas"]
    assert area["killed"] + area["timed out"] + area["survived"] + 1 == area["mutants"] > 2
    assert area["equivalent"] == 1
    assert area["killed"] > 0
    assert page["about"] == {"seed": 2, "sample": 50, "only": ["golden/toy.py"]}
    assert f"{area['mutants']}/{area['mutants']} " in first
    store = toy / "build" / "mutants" / "verdicts.jsonl"
    before = store.read_text()
    assert command.main(arguments) == 0
    assert json.loads((toy / "build" / "mutants" / "mutants.json").read_text()) == page
    assert store.read_text().startswith(before)  # the listed one is looked up again, no more
    assert len(store.read_text().splitlines()) == len(before.splitlines()) + 1


# --- the report -----------------------------------------------------------------------------------


def test_the_score_leaves_equivalents_out() -> None:
    mutant = Mutant("golden/a.py", 3, "f", "core/AddNot", 0, "if a | b:", "if not a | b:")
    outcomes = ("killed", "timed out", "survived", "equivalent", "killed")
    verdicts = [Verdict(mutant, outcome, "x", ("tests/t.py",), "") for outcome in outcomes]
    (row,) = summary(verdicts)
    assert (row["area"], row["mutants"], row["score"]) == ("golden", 5, 0.75)
    text = markdown({"seed": 1}, verdicts)
    assert "| golden | 5 | 2 | 1 | 1 | 1 | 75.0 % |" in text
    assert "golden/a.py:3, f; asked: tests/t.py\n\n```diff\n-if a | b:\n+if not a | b:\n" in text
    assert "| golden/a.py:3 | `if a \\| b: -> if not a \\| b:` | survived | x |" in text
    assert summary(verdicts[3:4])[0]["score"] is None
