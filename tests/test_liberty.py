"""Liberty files: what is read, what is refused, and the shipped file against the full one."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.liberty import (
    clock_gate_of,
    load_liberty,
    shipped_liberty,
    truth_table,
)
from kvtq_hw.estimates.liberty_format import parse_liberty

SMALL = """
/* a comment { with a bracket */
library (small) {
  capacitive_load_unit (1, pf);
  cell (NOT) { area : 2.5; pin (A) { direction : input; } pin (Y) { direction : output;
    function : "A'"; } }
  cell ("NA2") { area : 4; dont_use : false;
    pin (A) { direction : input; } pin (B) { direction : input; }
    pin (Y) { direction : output; function : "!(A B)"; timing () { values ("1, 2", \\
      "3, 4"); } } }
  cell (NA2BIG) { area : 8; pin (A) { direction : input; } pin (B) { direction : input; }
    pin (Y) { direction : output; function : "(!A) | (!B)"; } }
  cell (NO2) { area : 1; dont_use : true; pin (A) { direction : input; }
    pin (B) { direction : input; } pin (Y) { direction : output; function : "!(A+B)"; } }
}
"""


def test_groups_and_attributes() -> None:
    library = parse_liberty(SMALL)
    assert library.names == ["small"]
    assert library.attributes["capacitive_load_unit"] == ["1", "pf"]
    names = [cell.names for cell in library.all("cell")]
    assert names == [["NOT"], ["NA2"], ["NA2BIG"], ["NO2"]]
    nand = list(library.all("cell"))[1]
    assert (nand.get("area"), nand.get("dont_use"), nand.get("power")) == ("4", "false", None)
    (timing,) = list(nand.all("pin"))[2].all("timing")
    assert timing.attributes["values"] == ["1, 2", "3, 4"]


def test_cells_by_what_they_compute(tmp_path: Path) -> None:
    file = tmp_path / "small.lib"
    file.write_text(SMALL)
    library = load_liberty(file)
    assert library.inverter == "NOT"
    assert library.nand2_area == 4.0
    assert library.cells_to_avoid == ("NO2",)


@pytest.mark.parametrize(
    ("function", "rows"),
    [
        ("!(A&B)", "1110"),
        ("(!A) | (!B)", "1110"),
        ("(A*B)'", "1110"),
        ("A B", "0001"),
        ("A^B", "0110"),
        ("A B + !A !B", "1001"),
        ("A'+B", "1101"),
        ("!A''&1", "1100"),
        ("(A+B)(0+B)", "0101"),
    ],
)
def test_truth_table(function: str, rows: str) -> None:
    assert truth_table(function, ["A", "B"]) == tuple(row == "1" for row in rows)


@pytest.mark.parametrize("function", ["A&", "(A", "A)", "A&C", "", "A?B"])
def test_malformed_functions_are_refused(function: str) -> None:
    with pytest.raises(ValueError, match=r"^function: '.*' (is no input|where '\)')"):
        truth_table(function, ["A", "B"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it ends in the middle of a group"),
        (b"cell (x) { }", "it holds no library, or more than one"),
        (SMALL.encode()[:400], "it ends in the middle of a string"),
        (SMALL.encode()[:300], "it ends in the middle of a group"),
        (b"module x(input a); endmodule", None),
        (b"\x1f\x8b\x08broken", None),
        (gzip.compress(SMALL.encode())[:-20], None),
        (b"\xff\xfe", None),
        (b"library (x) { }", "it holds no cells"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, data: bytes, reason: str | None) -> None:
    file = tmp_path / "broken.lib"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"^Liberty file '.*broken.lib': ") as caught:
        load_liberty(file)
    if reason is not None:
        assert str(caught.value).endswith(f": {reason}")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^Liberty file '.*x.lib': No such file or directory$"):
        load_liberty(tmp_path / "x.lib")


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.lib").write_text(SMALL)
    (tmp_path / "b.lib.gz").write_bytes(gzip.compress(SMALL.encode()))
    plain, packed = load_liberty(tmp_path / "a.lib"), load_liberty(tmp_path / "b.lib.gz")
    assert plain.digest == packed.digest
    assert list(packed.cells) == ["NOT", "NA2", "NA2BIG", "NO2"]


def test_shipped_library_alone() -> None:
    """Published areas: the data sheets of the cells give width times 2.72 um."""
    shipped = shipped_liberty()
    widths = {"inv_1": 1.38, "nand2_1": 1.38, "xor2_1": 3.22, "dfxtp_1": 7.36, "dlclkp_4": 7.82}
    for cell, width in widths.items():
        assert shipped.area(f"sky130_fd_sc_hd__{cell}") == pytest.approx(width * 2.72, abs=1e-4)


def test_shipped_library_states_the_facts_of_the_full_one(sky130_liberty: Path) -> None:
    full, shipped = load_liberty(sky130_liberty), shipped_liberty()
    for name, cell in shipped.cells.items():
        assert shipped.area(name) == round(full.area(name), 4)
        assert clock_gate_of(cell) == clock_gate_of(full.cells[name])
        pins = {pin.names[0]: pin for pin in full.cells[name].all("pin")}
        for pin in cell.all("pin"):
            original = pins[pin.names[0]]
            assert pin.get("direction") == original.get("direction")
            for kind in ("function", "state_function"):
                assert pin.get(kind) == original.get(kind)
            if pin.get("direction") == "input":
                assert float(pin.get("capacitance") or 0) == round(
                    float(original.get("capacitance") or 0), 6
                )
