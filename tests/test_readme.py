"""README, the page of commands and the demo of the Makefile: what they say must exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from kvtq_hw.commands.frame.cli import cli
from kvtq_hw.contract.config import EngineConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLES = README + (ROOT / "docs" / "commands.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language, on both pages."""
    return re.findall(rf"^```{language}\n(.*?)^```$", EXAMPLES, re.MULTILINE | re.DOTALL)


def calls(script: str) -> list[str]:
    """The lines of a shell script that call kvtq-hw, with continued lines joined."""
    return [line for line in script.replace("\\\n", " ").splitlines() if "bin/kvtq-hw " in line]


COMMANDS = [line for block in blocks("sh") for line in calls(block)]


def parse(line: str) -> click.Context:
    """Parse a call of kvtq-hw with the command's own options and types, without running it."""
    words = shlex.split(line)
    _, name, *arguments = words[next(i for i, w in enumerate(words) if w.endswith("kvtq-hw")) :]
    command = cli.get_command(click.Context(cli), name)
    return command.make_context(name, arguments)


@pytest.mark.parametrize("line", COMMANDS)
def test_example_is_a_call_that_the_command_line_takes(line: str) -> None:
    with parse(line):
        pass


def test_each_command_has_an_example() -> None:
    names = {shlex.split(line)[1] for line in COMMANDS}
    assert names == set(cli.list_commands(click.Context(cli)))


@pytest.mark.parametrize("block", blocks("toml"))
def test_configuration_of_the_examples_loads(tmp_path, block: str) -> None:
    (tmp_path / "mine.toml").write_text(block)
    assert isinstance(load_config(tmp_path / "mine.toml"), EngineConfig)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_paths_in_tables_and_links_exist() -> None:
    cells = [
        cell for row in re.findall(r"^\|(.*)\|$", README, re.MULTILINE) for cell in row.split("|")
    ]
    named = re.findall(r"`([\w/]+(?:/|\.py))`", " ".join(cells))
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(named) > 10
    assert [path for path in [*named, *linked] if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "target", re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE)
)
def test_make_knows_the_target(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_demo_of_gemma_is_longer_than_its_window() -> None:
    """Fitted, 24 tokens, and a prompt of more than 512 tokens, which tests on the model count."""
    recipe = subprocess.run(
        ["make", "-n", "demo", "MODEL=gemma3-270m"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert 'fetch_model.py ".tools/models" "gemma3-270m"' in recipe.stdout
    [line] = calls(recipe.stdout)
    with parse(line) as context:
        options = context.params
    prompt = (ROOT / "benchmarks" / "demo-prompt.txt").read_text("utf-8")
    assert options["prompt"].split() == prompt.split()
    assert (options["backend"], options["model_name"]) == ("rtl", "gemma3-270m")
    assert (options["preset"], options["max_new_tokens"]) == (None, 24)


def test_demo_is_what_it_is_said_to_be() -> None:
    """K3/V2, tiers and feedback on the RTL; 16 words of a prompt have at least 16 tokens."""
    recipe = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    [line] = calls(recipe.stdout)
    with parse(line) as context:
        options = context.params
    assert options["backend"] == "rtl"
    assert options["preset"] == load_config("smollm2")
    assert str(options["code"]) == "balanced:3/2,sinks=4,window=32,feedback"
    assert len(options["prompt"].split()) >= 16
    assert options["max_new_tokens"] >= 24
