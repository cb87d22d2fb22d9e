"""The integration guide: its tables and diagrams are those of the sources, and its rules hold."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from bench_matrix import FOLDER, TINY

from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.registers import register_map
from sim.verilated.verilog_cache import cached_verilog

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from integration.tables import CODES, CONTEXT, TABLES, covered_latency, filled  # noqa: E402
from integration.waves import DIAGRAMS, Diagram, Recording, diagram, record, spans  # noqa: E402

DOCS = ROOT / "docs"
PAGE = (DOCS / "integration.md").read_text("utf-8")


def test_tables_are_those_of_the_sources() -> None:
    assert set(re.findall(r"<!-- table: (\w+) -->", PAGE)) == set(TABLES)
    assert filled(PAGE) == PAGE, "run python scripts/write_integration.py"


def test_a_table_that_differs_is_written_anew() -> None:
    assert "| `rst_n` |" in PAGE
    assert filled(PAGE.replace("| `rst_n` |", "| `reset` |")) == PAGE


def test_registers_and_ports_in_the_text_exist() -> None:
    """Registers and fields are written as `register`.field in text and sequence diagram."""
    named = re.findall(r"`(\w+)`\.(\w+)", PAGE)
    assert len(named) > 5
    for register, field in named:
        assert field in [entry.name for entry in register_map()[register].fields]
    buses = set(re.findall(r"[sm]_axi[ls]?_?(?:key_value|query|table|output)?", PAGE))
    assert {"s_axil", "m_axi", "s_axis_query", "m_axis_output"} <= buses


def test_latency_of_the_memory() -> None:
    """Up to the latency of the rule, jobs take at most 1 % more cycles in docs/cycles.md."""
    cycles = (DOCS / "cycles.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| ideal \| (\d+) \| (\d+) \|", cycles, re.MULTILINE)
    assert len(rows) == 9
    slower = 0
    for bits, latency, taken in (map(int, row) for row in rows):
        config = load_config("smollm2").replace(memory_bits=bits)
        least = min(int(row[2]) for row in rows if int(row[0]) == bits)
        if latency <= covered_latency(config, CODES["K2/V1"], CONTEXT):
            assert taken <= 1.01 * least
        else:
            slower += taken > least
    assert slower


@pytest.mark.parametrize("simulator", ["icarus"], indirect=True)
def test_diagrams_are_those_of_a_simulation(simulator: str, tmp_path: Path) -> None:
    verilog = cached_verilog("accelerator", TINY, FOLDER / "verilog")
    recording = record(verilog, TINY, tmp_path)
    pictures = {f"timing-{name}.svg": diagram(recording, DIAGRAMS[name]) for name in DIAGRAMS}
    files = {path.name: path.read_text("utf-8") for path in (DOCS / "img").glob("timing-*.svg")}
    assert pictures == files, "run python scripts/write_integration.py"
    assert set(re.findall(r"img/(timing-[\w-]+\.svg)", PAGE)) == set(files)


def test_only_stretches_without_a_change_are_left_out() -> None:
    recording = Recording({"a": 1, "b": 4}, {"a": [0, 1] + [1] * 6 + [0], "b": [3] * 9})
    drawing = Diagram({"a": None, "b": "a"}, lambda _: (0, 8))
    assert spans(recording, drawing) == [0, 1, 2, 3, None, 8]
    text = diagram(recording, drawing)
    assert text.count(">3<") == 1, "the value of b counts while a is high"
    assert recording.first(2, "a", "b") == 2
    with pytest.raises(ValueError, match="not high together"):
        recording.first(8, "a")
