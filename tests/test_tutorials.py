"""Every command of the tutorials, run in a copy of the checkout; what they show must come out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from needs import missing

from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.toolchain import icarus

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))

#: A block of commands, a mark (it fails; its numbers are about the same), and the block of output
#: behind it, if there is one.
_STEP = re.compile(
    r"^(?:<!-- (fails|about) -->\n)?```sh\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_DECIMAL = re.compile(r"[+-]?\d+\.\d+")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout of the files as they are, with this one's environment and tools."""
    copy = tmp_path / "kvtq-hw"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for compiled in (ROOT / "golden").rglob("__pycache__/*.nb[ci]"):  # loops, which take a minute
        place = copy / compiled.relative_to(ROOT)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, place)
    if (ROOT / ".tools").exists():
        (copy / ".tools").symlink_to((ROOT / ".tools").resolve())
    # the environment as it is, newer than the copied files: make must not install the copy in it
    (copy / ".venv").mkdir()
    for entry in (ROOT / ".venv").iterdir():
        if entry.name != ".installed":
            (copy / ".venv" / entry.name).symlink_to(entry.resolve())
    (copy / ".venv" / ".installed").touch()
    identity = ["-c", "user.name=tutorial", "-c", "user.email=tutorial@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "as it is"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


def in_words(text: str) -> str:
    """The words of a text, without the lines of tables, between single spaces."""
    return " ".join(re.sub("[│|]", " ", text).split())


def is_shown(line: str, said: str, about: bool) -> bool:
    """Whether a command said a line of the page; whether with about its decimals, where they depend
    on the machine's floating point: within 10 % or two units in the last place.
    """
    line, said = in_words(line), in_words(said)
    if not about:
        return line in said
    wanted = _DECIMAL.findall(line)
    pattern = f"({_DECIMAL.pattern})".join(map(re.escape, _DECIMAL.split(line)))
    return any(
        all(
            abs(float(one) - float(other))
            <= max(0.1 * abs(float(other)), 2.1 * 10 ** -len(other.partition(".")[2]))
            for one, other in zip(found.groups(), wanted, strict=True)
        )
        for found in re.finditer(pattern, said)
    )


def test_lines_are_compared_in_words_and_exactly() -> None:
    said = " name │ bits\n int4   4.25  0.0017  +0.95 %"
    assert is_shown("int4 4.25  0.0017", said, False)
    assert not is_shown("int4 4.26 0.0017", said, False)
    assert is_shown("int4 4.26 0.0019 +0.97 %", said, True)
    for line in ("int4 4.80", "int8 4.25", "int4 4.25 0.0020", "int4 4.25 +0.95"):
        assert not is_shown(line, said, True)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda page: page.stem)
def test_every_step(tutorial: Path, checkout: Path, request: pytest.FixtureRequest) -> None:
    try:
        icarus()
    except UserError as error:
        missing("simulators", str(error))
    if "make setup model" in (page := tutorial.read_text("utf-8")):
        request.getfixturevalue("smollm2_wheel")
    steps = _STEP.findall(page)
    assert steps
    # one thread: where tests share the processors, more threads wait for each other
    environment = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "100"}
    environment["OMP_NUM_THREADS"] = "1"
    for mark, commands, output in steps:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        said = run.stdout + run.stderr
        assert bool(run.returncode) == (mark == "fails"), f"{commands}\n{said}"
        lines = output.splitlines()
        assert [line for line in lines if not is_shown(line, said, mark == "about")] == [], said
