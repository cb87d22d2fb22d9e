"""`kvtq-hw energy`: the projection for a model that nobody has measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtq_hw.commands.frame.cli import run

ROOT = Path(__file__).resolve().parent.parent
CODE = "balanced:3/2,sinks=4,window=32"


def energy(*words: str) -> int:
    return run(["energy", "--results", str(ROOT / "docs/results"), "--code", CODE, *words])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nhead_dim = 128\nquery_group = 3\nlanes = 32\n')
    return file


def rows(file: Path, *words: str) -> dict[tuple[str, int], dict]:
    assert energy(*words, "--json", str(file)) == 0
    found = json.loads(file.read_text("utf-8"))["rows"]
    by_engine = {(row["name"], row["key_planes"]): row for row in found}
    assert len(by_engine) == len(found)
    return by_engine


def test_bits_and_bytes_by_hand(tmp_path, config) -> None:
    shape = ["--preset", str(config), "--layers", "28", "--kv-heads", "8", "--context", "1024"]
    found = rows(tmp_path / "r.json", *shape, "--memory-pj", "5")
    # a plane of 128 digits has 26 bytes, a scale one; an append writes the new token, reads the one
    # that leaves the window and writes it again
    body, tier = 5 * 26 + 2, 2 * (5 * 26 + 1)
    size = 36 * tier + 988 * body
    ternary = found["ternary K3/V2", 1]
    assert ternary["bits_per_element"] == 8 * size / (2 * 128 * 1024)
    assert ternary["moved_bytes"] == 28 * 8 * (size + 2 * tier + body)
    assert ternary["kv_memory_uj"] == pytest.approx(ternary["moved_bytes"] * 8 * 5 / 1e6)
    int8 = found["INT8", 1]
    assert int8["moved_bytes"] == 28 * 8 * 2 * 129 * 1025
    assert int8["int8_ratio"] == 1
    for row in found.values():
        parts = row["engine_uj"] + row["on_chip_uj"] + row["kv_memory_uj"]
        assert row["total_uj"] == pytest.approx(parts)
        assert row["int8_ratio"] == row["total_uj"] / int8["total_uj"]
    assert set(found) == {
        *(("ternary K3/V2", planes) for planes in (1, 3)),
        *((name, 1) for name in ("INT4 conditioned", "INT8")),
    }


def test_it_is_the_report_s_projection(tmp_path) -> None:
    """SmolLM2-135M of docs/system-energy.md, and twice its layers."""
    from kvtq_hw.contract.codes import CacheCode
    from kvtq_hw.contract.config import load_config
    from kvtq_hw.estimates.candidates import ternary
    from kvtq_hw.estimates.system_energy import SYSTEMS, measurements, nearest, system_energy
    from kvtq_hw.report.sections.recorded import recorded

    shape = ["--preset", "smollm2", "--kv-heads", "3", "--context", "8192"]
    found = rows(tmp_path / "r.json", *shape, "--layers", "30")
    files = recorded(ROOT / "docs/results", "power")
    engines = nearest(measurements(file.data for file in files), SYSTEMS[0])
    [engine] = [entry for entry in engines if entry.planes == (3, 2)]
    wanted = ternary(load_config("smollm2"), CacheCode.parse(CODE))
    energy_of_token = system_energy(SYSTEMS[0], 8192, wanted, engine)
    assert found["ternary K3/V2", 3]["total_uj"] == energy_of_token.total(8.0)
    double = rows(tmp_path / "d.json", *shape, "--layers", "60")
    for engine_name, row in double.items():
        assert row["total_uj"] == pytest.approx(2 * found[engine_name]["total_uj"])


def test_the_configuration_s_own_storage_counts(tmp_path, config) -> None:
    """Two bits a digit instead of five digits in eight are more bytes; the slices are the same."""
    shape = ["--preset", str(config), "--context", "1024"]
    packed = rows(tmp_path / "a.json", *shape)["ternary K3/V2", 1]
    config.write_text(config.read_text() + 'packing = "2bit"\n')
    loose = rows(tmp_path / "b.json", *shape)["ternary K3/V2", 1]
    assert loose["moved_bytes"] > packed["moved_bytes"]
    assert loose["engine_uj"] == packed["engine_uj"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--context", "36"], "--context: 36 is not allowed; must be more than the 36 tokens of"),
        (["--context", "16384"], "--context: 16384 is more than max_context 8192"),
        (["--preset", "odd.toml"], "head_dim: 20 is not allowed here; must be a multiple of the 8"),
        (["--results", "."], "--results: '.' has no attention of INT8; allowed is a folder with"),
    ],
)
def test_what_is_not_allowed(words, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.toml").write_text('name = "odd"\nhead_dim = 20\nquery_group = 1\nlanes = 4\n')
    assert energy(*words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
