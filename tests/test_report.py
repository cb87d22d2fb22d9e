"""The report: sections, the store, and pages that hold every number of report.json."""

from __future__ import annotations

import html.parser
import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner
from report_inputs import CODES, INPUTS, PLOT, TINY, engine_row, record
from tiny_model import save_tiny_model

from kvtq_hw.commands.report import command
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.results import ResultStore
from kvtq_hw.host.sources import hardware_digest
from kvtq_hw.report import collect as collect_module
from kvtq_hw.report.collect import collect
from kvtq_hw.report.content import Inputs, Plot, Section, Table
from kvtq_hw.report.page import html as html_page
from kvtq_hw.report.page import markdown
from kvtq_hw.report.sections import SECTIONS, area, cycles, headline, multipliers, quality, zeros

TABLE = Table("T <&>", "derived", "kvtq-hw x", ("name", "number"), (("a|b", 1234), (None, 1.5)))
SECTION = Section("A section", "It says <this>.", (TABLE,), (PLOT,))


def report_of(*sections: Section) -> dict:
    plain = json.loads(json.dumps([section.as_dict() for section in sections]))
    return {"title": "Title", "subject": "Subject", "version": "1", "sections": plain}


class Page(html.parser.HTMLParser):
    """Tags that are open, texts of cells, and addresses that a page refers to."""

    void = ("meta", "link", "br", "use", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.pictures = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.addresses += [v for k, v in attributes if k in ("href", "src", "xlink:href")]
        self.pictures += tag == "svg"
        if tag not in self.void:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.addresses += [v for k, v in attributes if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_page_holds_every_cell_and_needs_no_other_file():
    page = Page(html_page(report_of(SECTION)))
    assert page.open == []
    assert page.cells == ["name", "number", "a|b", "1\u202f234", "\u2013", "1.5"]
    assert page.pictures == 1
    assert page.addresses
    assert all(address.startswith(("#", "data:")) for address in page.addresses)


def test_page_escapes_and_says_where_numbers_come_from():
    text = html_page(report_of(SECTION))
    assert "T &lt;&amp;&gt;" in text and "It says &lt;this&gt;." in text
    folded = '<span class="tag {}">{}</span><details><summary>command</summary><code>{}</code>'
    assert folded.format("derived", "derived", "kvtq-hw x") in text
    assert folded.format("measured", "measured", "c") in text


def test_markdown_has_the_same_tables():
    text = markdown(report_of(SECTION))
    assert "**T <&>** (derived: `kvtq-hw x`)" in text
    assert "| name | number |\n|---|---:|\n| a\\|b | 1\u202f234 |\n| \u2013 | 1.5 |\n" in text
    assert "Plot: P (measured: `c`)" in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table("t", "guessed", "c", (), ()), "'t': tag 'guessed' is unknown; allowed are"),
        (lambda: Table("t", "derived", "", (), ()), "'t': no command; a number needs the one"),
        (lambda: Table("t", "derived", "c", ("a",), ((1, 2),)), "a row has 2 cells, its heading 1"),
        (lambda: Plot("p", "derived", "c", "line", "", "", (), "r"), "plot 'p' has no points"),
        (lambda: replace(PLOT, reading=""), "plot 'P' has no sentence that says what it shows"),
        (lambda: Section("s", "l"), "section 's' has neither a table nor a plot nor a pan"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_headline_takes_bits_cycles_and_quality_together():
    [table] = headline.build(INPUTS).tables
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["fp16", "int8", "int4", *map(str, CODES)]
    assert rows["int8"][2] == 1.0 and rows["fp16"][4] == "+0.00 %"
    assert rows["fp16"][3] is None and rows["balanced:3/2"][3] > 0


def test_quality_shows_every_row_of_the_files():
    """Each model's rows in a table of its own."""
    section = quality.build(INPUTS)
    expected = Counter()
    for file in INPUTS.results.glob("*.json"):
        data = json.loads(file.read_text("utf-8"))
        if "segments" in data:
            expected[data["model"]] += len(data["rows"])
    assert len(expected) == 2
    shown = {table.title.split()[2].rstrip(":"): len(table.rows) for table in section.tables}
    assert shown == expected


def test_the_headline_is_of_one_model(tmp_path):
    """Rows of other models, though of more segments, are none of its business."""
    for file in INPUTS.results.glob("*8x1024-baselines.json"):
        data = json.loads(file.read_text("utf-8"))
        data["segments"] += data["model"] != "smollm2"
        (tmp_path / file.name).write_text(json.dumps(data))
    [table] = headline.build(Inputs(TINY, CODES, "no model", tmp_path)).tables
    measured_on = {row[-1] for row in table.rows}
    assert measured_on == {"smollm2: wikitext2-test.txt, 8 x 1024 tokens", None}


def test_quality_without_results_is_one_clear_line(tmp_path):
    message = "holds no file of kvtq-hw eval --json$"
    with pytest.raises(UserError, match=message):
        quality.build(Inputs(TINY, CODES, "m", tmp_path))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"^result '.*broken\.json': not JSON: "):
        quality.build(Inputs(TINY, CODES, "m", tmp_path))


@pytest.mark.parametrize("code", CODES, ids=str)
def test_cycle_model_equals_the_counter(code):
    [table] = cycles.build(Inputs(TINY, (code,), "m", INPUTS.results)).tables
    assert table.rows
    for _, counted, model, difference, bound, _ in table.rows:
        assert counted == model and difference == 0 and 0 < bound < counted


def test_multipliers_and_area_name_every_total():
    [counted] = multipliers.build(INPUTS).tables
    assert counted.rows[-1] == ("all", 3 * TINY.query_group, TINY.query_group)
    [areas] = area.build(INPUTS).tables
    assert areas.rows[-1][0] == "all"
    assert areas.rows[-1][2] == pytest.approx(sum(row[2] for row in areas.rows[:-1]), abs=20)


def test_zeros_of_a_model(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    [table] = zeros.build(Inputs(TINY, CODES, str(folder), INPUTS.results)).tables
    planes = [(row[0], row[1], row[2]) for row in table.rows]
    assert planes == [
        (str(code), tensor, plane)
        for code in CODES
        for tensor, digits in (("key", code.key_digits), ("value", code.value_digits))
        for plane in range(digits)
    ]


# --- what other commands have recorded ------------------------------------------------------------


COMMITTED = {name: SECTIONS[name](INPUTS) for name in ("timing", "fpga", "sweep")}


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_results_make_a_section(name):
    section = COMMITTED[name]
    assert section is not None and section.tables
    for table in section.tables:
        assert table.rows and f"kvtq-hw {name} " in table.command
        assert "(recorded in " in table.command


def test_a_sweep_shows_what_was_swept():
    [table] = COMMITTED["sweep"].tables
    assert table.columns[:4] == ("lanes", "query_group", "code", "um2")


@pytest.mark.parametrize(
    "name", ["verdict", "pictures", "comparison", "power", "system_energy", *COMMITTED]
)
def test_without_results_there_is_no_section(name, tmp_path):
    assert SECTIONS[name](Inputs(TINY, CODES, "m", tmp_path)) is None


def test_a_section_without_content_is_left_out(monkeypatch, tmp_path):
    def build(inputs: Inputs) -> None:
        return None

    build.__module__ = headline.__name__  # whose sources the store's key holds
    monkeypatch.setattr(collect_module, "SECTIONS", {"a": build})
    store = ResultStore(tmp_path / "store.sqlite")
    assert collect(INPUTS, lambda name: None, store)["sections"] == []


def test_recorded_results_of_the_configuration_come_alone(tmp_path):
    path = {"delay_ps": 2000.4, "fmax_mhz": 499.9, "tool": "abc"}
    fields = {"library": {"name": "lib"}, "paths": {"engine": path, "total": path}}
    other = TINY.replace(name="other", lanes=8)
    inputs = record(tmp_path, "timing", other, **fields)
    [table] = SECTIONS["timing"](inputs).tables
    assert table.title == "Longest paths of other in lib"
    assert table.rows[-1] == ("total", 2000, 500, "abc")
    assert table.note == "Recorded with earlier sources of the hardware."
    record(tmp_path, "timing", sources=hardware_digest(), **fields)
    [table] = SECTIONS["timing"](inputs).tables
    assert (table.title, table.note) == ("Longest paths of tiny in lib", "")


def test_comparison_shows_every_way(tmp_path):
    row = {"name": "INT8", "lanes": 4, "um2": 200.0, "lane_um2": 10.0, "effective_cycles": 100}
    row |= {"bytes": 64, "quality": {"perplexity_ratio": 1.01, "kld": 0.5}, "cycles": 90}
    row["code"] = "int8"
    row |= {"key_planes": 3, "value_planes": 2, "blocks": {"engine": 200.0}, "missed": None}
    half = row | {"name": "b", "um2": 300.0, "effective_cycles": 50, "quality": None}
    ways = {"equal lanes: 4": [row, half], "equal speed": [half, row]}
    inputs = record(tmp_path, "compare", tokens=64, ways=ways)
    first, second = SECTIONS["comparison"](inputs).tables
    assert first.title == "tiny, 64 tokens, equal lanes: 4"
    assert first.rows[0] == ("INT8", 4, "3/2", 200, 1.0, 10, 100, 1.0, 64, 1.01)
    assert first.rows[1] == ("b", 4, "3/2", 300, 1.5, 10, 50, 2.0, 64, None)
    # INT8 is one wherever it stands
    assert "area, INT8 = 1" in second.columns and "tokens/s, INT8 = 1" in second.columns
    assert second.rows == (first.rows[1], first.rows[0])
    assert second.note.startswith("Areas and perplexity are measured; cycles")


def attention(total: float) -> dict:
    energy = {"toggles": 1, "switching_pj": 0, "clock_pj": 0, "internal_pj": 0, "total_pj": total}
    return {
        "config": TINY.model_dump(),
        "library": {"name": "lib"},
        "cycles": 7,
        "slices": {"key": 3, "value": 2},
        "blocks": {"select_add": energy},
        "total": energy,
    }


def test_verdict_judges_by_number(tmp_path):
    """The first ternary row against each integer format, at every way of each comparison."""
    rows = [
        engine_row("ternary A", 104.0, 50, 1.004),
        engine_row("ternary B", 1.0, 1, 1.0),
        engine_row("INT8", 100.0, 100, 1.0),
        engine_row("INT4 conditioned", 50.0, 47, 1.02),
    ]
    ways = {"equal lanes: 4": rows, "equal memory bandwidth: 8 bits": rows}
    inputs = record(tmp_path, "compare", tokens=64, ways=ways)
    section = SECTIONS["verdict"](inputs)
    [table] = section.tables
    assert [row[:6] for row in table.rows] == [
        (
            "perplexity",
            "ternary A, 1 / ratio of perplexities",
            1.0,
            "about the same",
            1.02,
            "better",
        ),
        (
            "tokens per second",
            "ternary A, equal memory bandwidth, 64 tokens",
            2.0,
            "better",
            0.94,
            "worse",
        ),
        (
            "area",
            "ternary A, equal memory bandwidth, 64 tokens",
            1.04,
            "about the same",
            2.08,
            "worse",
        ),
    ]
    assert section.lead.startswith(
        "Against INT8 the ternary engine is better in tokens per second, about the same in "
        "perplexity and area. Against INT4 conditioned the ternary engine is better in "
        "perplexity, worse in tokens per second and area."
    )


def test_verdict_says_where_an_area_hangs_on_a_few_cycles(tmp_path):
    """On either side: with the engine that narrowly misses the memory's speed."""
    missed = {"lanes": 2, "key_planes": 1, "value_planes": 1, "cycles": 1001, "allowed": 1000}
    rows = [
        engine_row("ternary A", 60.0, 50, None) | {"missed": missed | {"um2": 30.0}},
        engine_row("INT8", 100.0, 100, None) | {"missed": missed | {"um2": 80.0}},
    ]
    ways = {"equal memory bandwidth: 8 bits": rows}
    inputs = record(tmp_path, "compare", tokens=64, ways=ways)
    against = {row[0]: row[-1] for row in SECTIONS["verdict"](inputs).tables[0].rows}
    takes = "with 2 lanes takes 1,001 cycles and 1,000 keep up: with it the ratio would be"
    assert against["area"].split("; ")[1:] == [
        f"INT8 {takes} 0.75",
        f"ternary A {takes} 0.30 of INT8",
    ]
    assert "keep up" not in against["tokens per second"]


def test_the_committed_verdict_has_its_caveat():
    """INT8 at 1,024 tokens has twice the lanes for want of one cycle."""
    [table] = SECTIONS["verdict"](INPUTS).tables
    [against] = [
        row[-1]
        for row in table.rows
        if row[0] == "area" and "1,024" in row[1] and "memory" in row[1]
    ]
    assert "INT8 with 8 lanes takes 16,912 cycles and 16,911 keep up" in against
    assert against.endswith("would be 0.91")


def test_verdict_finds_the_integers_of_the_same_attention(tmp_path):
    """In another file, but of no other attention; what was not measured is no judgement."""
    place = {"layer": 1, "head": 2, "step": 0, "tokens": 5, "attentions_per_token": None}
    one, planes = TINY.replace(name="one"), TINY.replace(name="planes", lanes=8)
    variants = {"captured": attention(20.0), "int8": attention(10.0)}
    record(tmp_path, "power", one, variants=variants, **place)
    record(tmp_path, "power", planes, variants={"captured": attention(9.0)}, **place)
    other = TINY.replace(name="other", lanes=2)
    inputs = record(
        tmp_path, "power", other, variants={"captured": attention(1.0)}, **place | {"tokens": 6}
    )
    section = SECTIONS["verdict"](inputs)
    assert [row[1:6] for row in section.tables[0].rows] == [
        ("one, 5 tokens", 2.0, "worse", None, ""),
        ("other, 6 tokens", None, "", None, ""),
        ("planes, 5 tokens", 0.9, "better", None, ""),
    ]
    assert section.lead.startswith(
        "Against INT8 the ternary engine is undecided in energy of an attention. "
        "Nothing was measured against INT4 conditioned."
    )


def test_power_by_block_and_of_the_lanes(tmp_path):
    row = {"toggles": 10, "switching_pj": 1.2, "clock_pj": 2.4, "internal_pj": 0.0}
    row |= {"total_pj": 3.6}
    library = {"name": "lib", "source": "shipped"}
    blocks = {"select_add": row, "normalizer": row}
    variant = {"cycles": 7, "library": library, "blocks": blocks, "total": row | {"toggles": 20}}
    variant |= {"config": TINY.model_dump(), "slices": {"key": 3, "value": 2}}
    place = {"layer": 1, "head": 2, "step": 0, "tokens": 5, "attentions_per_token": 90}
    variants = {"captured": variant, "no-zero-keys": variant}
    inputs = record(tmp_path, "power", variants=variants, **place)
    by_block, lanes = SECTIONS["power"](inputs).tables
    assert by_block.tag == lanes.tag == "projected"
    assert by_block.title == (
        "Energy of one attention in pJ: tiny, layer 1, KV head 2, 5 tokens, lib"
    )
    assert by_block.rows[0] == ("select_add", 10, 1, 2, 0, 4)
    assert by_block.rows[-1] == ("all", 20, 1, 2, 0, 4)
    assert by_block.note.startswith("7 cycles. All 90 attentions of a token alike: 0.00 uJ")
    assert lanes.rows[2:] == (
        ("no-zero-keys", "select_add", 7, 10, 4),
        ("no-zero-keys", "all", 7, 20, 4),
    )


def test_energy_of_a_token_by_part_and_by_memory():
    section = SECTIONS["system_energy"](replace(INPUTS, memory_pj=5.0))
    parts, by_memory, llama, _ = section.tables
    assert parts.title == "Energy per token of SmolLM2-135M, KV memory of 5 pJ/bit"
    assert llama.title == "Energy per token of Llama-3-8B, KV memory of 5 pJ/bit"
    assert {row[0] for row in parts.rows} == {1024, 8192, 32768}
    names = list(dict.fromkeys(row[1] for row in parts.rows))
    tables = ["ternary smollm2-anchors-3.6", "ternary smollm2-anchors-2.7"]
    assert names == ["ternary K3/V2", *tables, "INT4 conditioned", "INT8"]
    for row in (*parts.rows, *llama.rows):
        *_, engine, on_chip, kv_memory, total, ratio = row
        assert engine + on_chip + kv_memory == pytest.approx(total, abs=2)
        assert (ratio == 1.0) == (row[1] == "INT8")
    # 5 pJ times the bits of INT8: 90 heads, 130 bytes a token, and one token written
    [kv_memory] = [row[7] for row in parts.rows if row[:2] == (1024, "INT8")]
    assert kv_memory == round(90 * 130 * 8 * 1025 * 5 / 1e6)
    assert by_memory.columns[3:6] == ("no KV memory", "HBM2, 3.92 pJ/bit", "LPDDR4, 8.0 pJ/bit")
    drawn = SECTIONS["pictures"](replace(INPUTS, memory_pj=5.0)).plots[-1]
    assert drawn.title.startswith("Energy per token of SmolLM2-135M, 8,192 tokens, 5 pJ/bit")
    for plot, table in zip((drawn, *section.plots), (parts, llama), strict=True):
        shown = [row for row in table.rows if row[0] == 8192]
        assert [series.name for series in plot.series] == ["engine", "on chip", "KV memory"]
        ends = [sum(x) for x in zip(*(series.x for series in plot.series), strict=True)]
        assert ends[::-1] == pytest.approx([row[-2] for row in shown], rel=0.01)


def test_energy_of_a_token_without_int8_or_tables(tmp_path):
    data = json.loads((INPUTS.results / "power-smollm2-8lanes-planes.json").read_text())
    assert set(data["variants"]) == {"captured", "no-zero-values"}
    (tmp_path / "power.json").write_text(json.dumps(data))
    section = SECTIONS["system_energy"](Inputs(TINY, CODES, "m", tmp_path))
    for table in section.tables:
        assert {row[-1] for row in table.rows} == {None}
        assert "ternary K3/V2" in {cell for row in table.rows for cell in row}
    assert len(section.plots[0].series[0].x) == 1


def test_recorded_power_shows_the_lanes_of_both_formats():
    tables = [table for table in SECTIONS["power"](INPUTS).tables if "variant" in table.columns]
    lanes = {row[1] for table in tables for row in table.rows}
    trits, integers = {"select_add", "select_accumulate"}, {"multiply_add", "multiply_accumulate"}
    assert lanes == trits | integers | {"all"}


def test_a_result_of_a_block_that_has_another_name_today_is_of_earlier_sources(tmp_path):
    data = json.loads((INPUTS.results / "fpga-tiny.json").read_text())
    (tmp_path / "fpga.json").write_text(json.dumps(data | {"block": "select_add"}))
    section = SECTIONS["fpga"](Inputs(TINY, CODES, "m", tmp_path))
    assert section.tables[0].note == "Recorded with earlier sources of the hardware."


def test_a_broken_result_is_one_clear_line(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"^result '.*x\.json': not JSON: "):
        SECTIONS["fpga"](Inputs(TINY, CODES, "m", tmp_path))


def test_what_is_measured_is_not_measured_again(monkeypatch, tmp_path):
    built = []

    def build(inputs: Inputs) -> Section:
        built.append(inputs)
        return SECTION

    build.__module__ = headline.__name__
    monkeypatch.setattr(collect_module, "SECTIONS", {"a": build, "b": build})
    store = ResultStore(tmp_path / "store.sqlite")
    first = collect(INPUTS, lambda name: None, store)
    assert len(built) == 2
    assert collect(INPUTS, lambda name: None, store) == json.loads(json.dumps(first))
    assert len(built) == 2
    other = Inputs(TINY, CODES[:1], "no model", INPUTS.results)
    collect(other, lambda name: None, store)
    assert len(built) == 4
    collect(replace(other, memory_pj=1.0), lambda name: None, store)
    assert len(built) == 6


def test_a_table_of_digits_is_part_of_the_results(monkeypatch, tmp_path):
    built = []

    def build(inputs: Inputs) -> Section:
        built.append(inputs)
        return SECTION

    build.__module__ = headline.__name__
    monkeypatch.setattr(collect_module, "SECTIONS", {"a": build})
    store = ResultStore(tmp_path / "store.sqlite")
    shutil.copy(next(INPUTS.results.glob("*8x1024-baselines.json")), tmp_path)
    table = tmp_path / "tables" / "a.toml"
    table.parent.mkdir()
    for text in ("one", "two", "two"):
        table.write_text(text)
        collect(Inputs(TINY, CODES, "m", tmp_path), lambda name: None, store)
    assert len(built) == 2


def test_command_writes_three_files(monkeypatch, tmp_path):
    monkeypatch.setattr(collect_module, "SECTIONS", {"headline": SECTIONS["headline"]})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--preset", "tiny", "--results", str(INPUTS.results), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (tmp_path / "out" / "report.html").read_text("utf-8") == html_page(report)
    assert (tmp_path / "out" / "report.md").read_text("utf-8") == markdown(report)
