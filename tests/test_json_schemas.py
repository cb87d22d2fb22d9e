"""Files of `--json` have the documented fields; `conftest` checks those of all tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from pydantic import ValidationError
from test_site import script

from kvtq_hw.commands.frame.cli import cli, run
from kvtq_hw.commands.frame.schemas import SCHEMAS
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.contract.packing import cache_bytes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"

#: Commands whose own output is JSON: the option would write it twice.
OWN_JSON = {"report", "sweep"}


def has_json(name: str) -> bool:
    command = cli.get_command(click.Context(cli), name)
    return any("--json" in parameter.opts for parameter in command.params)


def test_every_command_has_json_and_a_schema() -> None:
    names = set(cli.list_commands(click.Context(cli)))
    assert {name for name in names if not has_json(name)} == OWN_JSON
    assert set(SCHEMAS) == names - {"report"}


def test_the_page_has_every_field_with_type_and_meaning() -> None:
    page = (ROOT / "docs" / "reference" / "json.md").read_text("utf-8")
    text = script("json_page").on_page_markdown(page)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == sorted(SCHEMAS)
    for row in (
        "| `ways.*[].missed.um2` | number or null | um^2 | area of the engine |",
        "| `regions[].side` | text |  | key or value |",
        "| `memory_pj` | number | pJ | energy per bit of the KV memory |",
        "| `blocks.*.tests[].seconds` | number | s | its time |",
    ):
        assert row in text.splitlines()
    assert script("json_page").on_page_markdown("# Another page") == "# Another page"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*-*.json")), ids=lambda file: file.stem)
def test_recorded_files_have_these_fields(file: Path) -> None:
    """Files of eval were recorded before it wrote device, dtype and saturated elements."""
    data = json.loads(file.read_text("utf-8"))
    name = data["command"].split()[1] if "command" in data else "eval"
    if name == "eval":
        allowed = set(SCHEMAS[name].model_fields)
        assert set(data) <= allowed and {"model", "rows", "config"} <= set(data)
        return
    if name == "sweep":
        data.setdefault("clock_gate", None)  # recorded before clocks were gated
    SCHEMAS[name].model_validate_json(json.dumps(data))


def written(tmp_path: Path, *words: str) -> dict:
    file = tmp_path / "out.json"
    assert run([*words, "--json", str(file)]) == 0
    text = file.read_text("utf-8")
    SCHEMAS[words[0]].model_validate_json(text)
    return json.loads(text)


def test_layout(tmp_path) -> None:
    words = ["--preset", "tiny", "--code", "balanced:2/1,sinks=2,window=4", "--layers", "2"]
    found = written(tmp_path, "layout", *words, "--kv-heads", "3", "--base", "0x100")
    config = load_config("tiny")
    code = CacheCode.parse("balanced:2/1,sinks=2,window=4")
    layout = MemoryLayout(config, code.of_layers(2), 3, config.max_context, 0x100)
    assert (found["bytes"], found["end"]) == (layout.bytes, layout.end)
    regions = found["regions"]
    assert len(regions) == 2 * 3 * 2 * 3
    assert regions[0]["address"] == 0x100
    of_a_head = [region for region in regions if (region["layer"], region["head"]) == (1, 2)]
    size = sum(region["record_bytes"] * region["records"] for region in of_a_head)
    assert size >= cache_bytes(config, code, config.max_context)


def test_generate_names_the_files_that_it_wrote(tmp_path) -> None:
    found = written(tmp_path, "generate", "--preset", "tiny", "-o", str(tmp_path / "tiny"))
    assert {Path(file) for file in found["files"]} == set((tmp_path / "tiny").iterdir())


def test_simulate(tmp_path, simulator) -> None:
    words = ["--preset", "tiny", "--simulator", simulator, "--build-folder", str(tmp_path / "b")]
    found = written(tmp_path, "simulate", "packer", *words)
    [bench] = found["blocks"].values()
    assert bench["failed"] == 0 and bench["passed"] == len(bench["tests"]) > 0
    assert Path(bench["log"]).is_file() and bench["waves"] is None


@pytest.mark.parametrize("name", ["doctor", "models"])
def test_what_is_here(name, tmp_path) -> None:
    assert written(tmp_path, name)


def test_pareto(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    file = RESULTS / "wikitext2-8x1024-baselines.json"
    found = written(tmp_path, "pareto", str(file), "-o", str(tmp_path / "p.svg"))
    rows = json.loads(file.read_text("utf-8"))["rows"]
    codes = [row["code"] for row in rows if row["code"] != "unquantized"]
    assert [point["code"] for point in found["points"]] == codes


def test_an_undocumented_field_is_noticed() -> None:
    with pytest.raises(ValidationError, match="extra"):
        SCHEMAS["pareto"].model_validate({"points": [], "extra": 1})
    with pytest.raises(ValidationError, match="points"):
        SCHEMAS["pareto"].model_validate({})
