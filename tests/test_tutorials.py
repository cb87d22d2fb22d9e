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

#: A block of commands, whether it must fail, and the block of output behind it, if there is one.
_STEP = re.compile(
    r"^(<!-- fails -->\n)?```sh\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)


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


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda page: page.stem)
def test_every_step(tutorial: Path, checkout: Path) -> None:
    try:
        icarus()
    except UserError as error:
        missing("simulators", str(error))
    steps = _STEP.findall(tutorial.read_text("utf-8"))
    assert steps
    environment = os.environ | {"PYTHONPATH": str(checkout), "COLUMNS": "100"}
    for fails, commands, output in steps:
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        said = run.stdout + run.stderr
        assert bool(run.returncode) == bool(fails), f"{commands}\n{said}"
        shown = " ".join(re.sub("[│|]", " ", said).split())
        assert [line for line in output.splitlines() if line not in shown] == [], said
