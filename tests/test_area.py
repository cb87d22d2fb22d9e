"""Area from the netlist: known designs, repetition, the shipped library against the full one."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates import synthesis
from kvtq_hw.estimates.area import measure_area
from kvtq_hw.estimates.blocks import Part, engine_parts, split
from kvtq_hw.estimates.liberty import load_liberty, shipped_liberty
from kvtq_hw.estimates.synthesis import map_part, mapped_netlist
from kvtq_hw.estimates.workers import of_each_part, processors
from kvtq_hw.host.results import ResultStore
from rtl.verilog import emit_rtlil

TINY = load_config("tiny")
# um^2, from the cells' data sheets
INV, DFF, MUX, XOR, GATE = 3.7536, 20.0192, 11.2608, 8.7584, 21.2704


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ResultStore:
    return ResultStore(tmp_path_factory.mktemp("estimates") / "results.sqlite")


class Bits(wiring.Component):
    """Eight bits inverted, eight exclusive-ors, eight registers, and as many that can hold."""

    def __init__(self, holding=4):
        names = {"inverted": Out(8), "either": Out(8), "later": Out(8), "held": Out(holding)}
        super().__init__({"a": In(8), "b": In(8), "hold": In(1)} | names)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.inverted.eq(~self.a), self.either.eq(self.a ^ self.b)]
        later = Signal(8, reset_less=True)
        held = Signal(len(self.held), reset_less=True)
        m.d.sync += later.eq(self.b)
        with m.If(self.hold):
            m.d.sync += held.eq(self.a)
        m.d.comb += [self.later.eq(later), self.held.eq(held)]
        return m


class Memories(wiring.Component):
    """A memory of 16 x 8 bits that is written, and a table of as many that is not."""

    address: In(4)
    data: In(8)
    write: In(1)
    stored: Out(8)
    constant: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Memory(shape=8, depth=16, init=[])
        m.submodules.rom = rom = Memory(shape=8, depth=16, init=[(7 * i) % 256 for i in range(16)])
        port, into, table = ram.read_port(), ram.write_port(), rom.read_port(domain="comb")
        m.d.comb += [
            port.addr.eq(self.address),
            port.en.eq(1),
            self.stored.eq(port.data),
            into.addr.eq(self.address),
            into.data.eq(self.data),
            into.en.eq(self.write),
            table.addr.eq(self.address),
            self.constant.eq(table.data),
        ]
        return m


def part_of(component: wiring.Component) -> Part:
    return Part("engine", "design", 1, emit_rtlil(component, "design"))


# --- known designs --------------------------------------------------------------------------------


def test_cells_and_area_of_a_known_design(store) -> None:
    mapping = map_part(part_of(Bits()), shipped_liberty(), store)
    kinds = {name.removeprefix("sky130_fd_sc_hd__"): n for name, n in mapping.cells.items()}
    assert kinds == {"inv_1": 8, "xor2_1": 8, "dfxtp_1": 12, "dlclkp_4": 1}
    assert mapping.area == round(8 * INV + 8 * XOR + 12 * DFF + GATE, 4)
    assert (mapping.flip_flops, mapping.memory_bits) == (12, 0)


def test_without_clock_gates_registers_that_hold_have_multiplexers(store) -> None:
    mapping = map_part(part_of(Bits()), load_liberty(None, gating=False), store)
    kinds = {name.removeprefix("sky130_fd_sc_hd__"): n for name, n in mapping.cells.items()}
    assert kinds == {"inv_1": 8, "xor2_1": 8, "dfxtp_1": 12, "mux2_2": 4}
    assert mapping.area == round(8 * INV + 8 * XOR + 12 * DFF + 4 * MUX, 4)


def test_transistors_of_a_known_design(store) -> None:
    """Static CMOS: 2 an inverter, 12 an exclusive or, 16 a flip-flop."""
    mapping = map_part(part_of(Bits(0)), shipped_liberty(), store)
    assert mapping.transistors == 8 * 2 + 8 * 12 + 8 * 16


def test_memories_are_counted_in_bits_and_tables_in_gates(store) -> None:
    mapping = map_part(part_of(Memories()), shipped_liberty(), store)
    assert mapping.memory_bits == 16 * 8
    assert mapping.flip_flops <= 8  # at most the read port's register; none for the words
    assert 0 < sum(mapping.cells.values()) < 60  # the table


def test_netlist_holds_the_cells_that_were_counted(store) -> None:
    part = part_of(Bits())
    mapping = map_part(part, shipped_liberty(), store)
    netlist = mapped_netlist(part, shipped_liberty(), store)
    for cell, count in mapping.cells.items():
        assert netlist.count(f"  {cell} ") == count


# --- parts of the engine --------------------------------------------------------------------------


def test_parts_are_the_blocks_and_what_remains() -> None:
    parts = {part.block: part for part in engine_parts(TINY)}
    assert list(parts)[-1] == "engine"
    assert {"key_lanes", "value_lanes", "normalizer", "online_softmax"} <= set(parts)
    assert "attribute \\blackbox 1\nmodule \\kvtq_engine_key_lanes\n" in parts["engine"].text


def test_one_block_is_the_engines_or_stands_alone() -> None:
    (part,) = engine_parts(TINY, "key_lanes")
    assert (part.block, part.top) == ("key_lanes", "kvtq_engine_key_lanes")
    (part,) = engine_parts(TINY, "unpacker")
    assert (part.block, part.top) == ("unpacker", "kvtq_unpacker")


def test_digest_is_of_the_content_alone() -> None:
    one, other, third = (
        Part("packer", name, 1, f"module \\{name}\n  wire {wire}\nend\n")
        for name, wire in (("kvtq_a", "x"), ("kvtq_b", "x"), ("kvtq_a", "y"))
    )
    assert one.digest == other.digest != third.digest


def test_instances_and_inner_modules_are_kept() -> None:
    inner = "module \\kvtq_engine_unpacker_inner\n  wire input 1 \\a\nend\n"
    block = (
        "module \\kvtq_engine_unpacker\n  wire width 2 input 1 \\a\n  wire \\b\n"
        "  cell \\kvtq_engine_unpacker_inner \\x\n  end\nend\n"
    )
    top = (
        "attribute \\top 1\nmodule \\kvtq_engine\n  cell \\kvtq_engine_unpacker \\u0\n  end\n"
        "  cell \\kvtq_engine_unpacker \\u1\n  end\n  cell $not \\n\n  end\nend\n"
    )
    unpacker, engine = split(top + block + inner, "kvtq_engine")
    assert unpacker == Part("unpacker", "kvtq_engine_unpacker", 2, block + inner)
    box = "attribute \\blackbox 1\nmodule \\kvtq_engine_unpacker\n  wire width 2 input 1 \\a\nend\n"
    assert engine == Part("engine", "kvtq_engine", 1, top + box)


def test_a_module_of_no_block_is_refused() -> None:
    top = "module \\kvtq_engine\n  cell \\other \\o\n  end\nend\nmodule \\other\nend\n"
    with pytest.raises(ValueError, match=r"^module 'other' belongs to none of the blocks query_"):
        split(top, "kvtq_engine")


# --- repetition -----------------------------------------------------------------------------------


def test_work_on_parts_begins_with_the_largest_and_keeps_their_order() -> None:
    parts = [Part("packer", name, 1, "x" * size) for name, size in (("a", 2), ("b", 9), ("c", 5))]
    begun = []

    def work(part: Part) -> str:
        begun.append(part.top)
        return part.top.upper()

    assert of_each_part(work, parts, jobs=1) == ["A", "B", "C"]
    assert begun == ["b", "c", "a"]
    assert processors() >= 1


def test_the_same_numbers_again_and_without_work_from_the_store(tmp_path, monkeypatch) -> None:
    first = measure_area(TINY, "key_lanes", store=ResultStore(tmp_path / "a"))
    again = measure_area(TINY, "key_lanes", store=ResultStore(tmp_path / "b"))
    assert again == first
    monkeypatch.setattr(synthesis, "run_yosys", None)
    monkeypatch.setattr("kvtq_hw.estimates.area.engine_parts", None)
    assert measure_area(TINY, "key_lanes", store=ResultStore(tmp_path / "a")) == first


def test_another_library_is_another_result(store, tmp_path) -> None:
    file = tmp_path / "larger.lib"
    larger = re.sub(
        r"(__dfxtp_\d\) \{\n    area : )([\d.]+)",
        lambda match: f"{match[1]}{float(match[2]) + 10:.4f}",
        shipped_liberty().text,
    )
    file.write_text(larger)
    part = part_of(Bits())
    small = map_part(part, shipped_liberty(), store)
    large = map_part(part, load_liberty(file), store)
    assert round(large.area - small.area, 4) == 12 * 10


# --- what must grow -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "field", "values"),
    [
        ("key_lanes", "lanes", (2, 4, 8)),
        ("key_lanes", "query_group", (1, 2)),
        ("key_lanes", "query_bits", (8, 10)),
        ("plane_scaler", "query_group", (1, 2)),
        ("weight_scaler", "weight_bits", (8, 11)),
        ("query_buffer", "head_dim", (8, 16)),
    ],
)
def test_area_grows_with(store, block: str, field: str, values: tuple[int, ...]) -> None:
    areas = [
        measure_area(TINY.replace(**{field: value}), block, store=store).total for value in values
    ]
    assert [a.um2 for a in areas] == sorted({a.um2 for a in areas})
    assert [a.transistors for a in areas] == sorted({a.transistors for a in areas})


# --- against the full library ---------------------------------------------------------------------


def test_shipped_library_chooses_the_same_cells_as_the_full_one(store, sky130_liberty) -> None:
    full = load_liberty(sky130_liberty)
    ours, theirs = (measure_area(TINY, liberty=lib, store=store) for lib in (None, full))
    assert ours.total.um2 == pytest.approx(theirs.total.um2, rel=0.01)
    for block, area in ours.blocks.items():
        other = theirs.blocks[block]
        assert area.um2 == pytest.approx(other.um2, rel=0.01), block
        common = sum(min(n, other.cells.get(name, 0)) for name, n in area.cells.items())
        assert common >= 0.99 * sum(other.cells.values()), block


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_command_beside_the_numbers_names_the_file(cache, tmp_path) -> None:
    preset, file = tmp_path / "mine.toml", tmp_path / "area.json"
    preset.write_text((files("kvtq_hw.contract") / "presets" / "tiny.toml").read_text())
    assert run(["area", "--preset", str(preset), "--block", "unpacker", "--json", str(file)]) == 0
    command = json.loads(file.read_text())["command"]
    assert command == f"kvtq-hw area --preset {preset} --block unpacker"


def test_command(cache, tmp_path, capsys) -> None:
    file = tmp_path / "area.json"
    arguments = ["area", "--preset", "tiny", "--block", "unpacker", "--json", str(file)]
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["command"] == "kvtq-hw area --preset tiny --block unpacker"
    assert written["tag"] == "measured"
    assert written["library"] == {"name": "sky130_fd_sc_hd_area", "source": "shipped"}
    unpacker = written["blocks"]["unpacker"]
    assert list(written["blocks"]) == ["unpacker"]
    assert unpacker["um2"] > 0
    assert unpacker["cells"] == sum(unpacker["cells_by_type"].values())
    assert unpacker["nand2_of_transistors"] == unpacker["transistors"] / 4
    assert f"{unpacker['um2']:,.0f}" in printed
    assert "Bits in RAM are apart" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--block", "adder"], "block: 'adder' is unknown; allowed are query_buffer, "),
        (["--liberty", "missing.lib"], "Liberty file 'missing.lib': No such file"),
        (["--preset", "huge"], "preset: 'huge' is unknown; allowed are "),
    ],
)
def test_errors_are_one_line(cache, capsys, arguments: list[str], message: str) -> None:
    assert run(["area", "--preset", "tiny", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvtq-hw: error: {message}")


def test_a_library_without_registers_is_one_line(store, tmp_path) -> None:
    text = shipped_liberty().text
    file = tmp_path / "gates.lib"
    start = text.index("  cell (sky130_fd_sc_hd__dfxtp_1)")
    file.write_text(text[:start] + "}\n")
    with pytest.raises(UserError, match=r"^library '.*gates.lib' has no flip-flop"):
        map_part(part_of(Bits()), load_liberty(file), store)


def test_a_cell_that_cannot_be_mapped_does_not_go_uncounted(store) -> None:
    text = (
        "module \\design\n  wire input 1 \\a\n  wire input 2 \\e\n  wire output 3 \\y\n"
        "  cell $tribuf \\t\n    parameter \\WIDTH 1\n    connect \\A \\a\n"
        "    connect \\EN \\e\n    connect \\Y \\y\n  end\nend\n"
    )
    with pytest.raises(UserError, match=r"^library 'shipped' has no cell for .*TBUF_ in engine"):
        map_part(Part("engine", "design", 1, text), shipped_liberty(), store)


def test_threads_may_store_one_netlist(tmp_path) -> None:
    store, key, netlist = (
        ResultStore(tmp_path / "a.sqlite"),
        {"what": "test"},
        "module m;\n" * 20000,
    )
    with ThreadPoolExecutor(4) as pool:
        for written in [pool.submit(store.put_text, key, netlist) for _ in range(16)]:
            written.result()
    assert store.get_text(key) == netlist
