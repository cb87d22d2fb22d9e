"""The register map: what it says, and that documentation, C header and driver say the same."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from pyslang.driver import Driver as Slang

from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.registers import (
    ADDRESS_BITS,
    WORD_BYTES,
    JobStatus,
    Kind,
    c_header,
    markdown,
    register_map,
    uvm_package,
)
from rtl.control import descriptor_layout
from sim.host.driver import Driver, descriptor_words

ROOT = Path(__file__).resolve().parent.parent
REGISTERS = register_map()
TINY = load_config("tiny")


def test_no_two_registers_or_fields_overlap():
    ends = [(r.address, r.address + WORD_BYTES * r.count) for r in REGISTERS.values()]
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1][1] <= 1 << ADDRESS_BITS
    for register in REGISTERS.values():
        assert sum(field.mask for field in register.fields) == register.pack(
            **{field.name: (1 << field.width) - 1 for field in register.fields}
        )
        assert all(field.description for field in register.fields)


def test_map_as_software_knows_it():
    """Addresses are an interface: a change here is another major version."""
    found = {name: register.address for name, register in REGISTERS.items()}
    assert found["identity"] == 0
    assert found["control"] == 0x10
    assert found["status"] == 0x14
    assert found["interrupt"] == 0x18
    assert found["job_flags"] == 0x100
    assert REGISTERS["identity"].fields[0].reset.to_bytes(4, "little") == b"KVTQ"
    kinds = {field.name: field.kind for field in REGISTERS["control"].fields}
    assert kinds == {"start": Kind.PULSE}
    assert {field.kind for field in REGISTERS["interrupt"].fields} == {Kind.EVENT}
    assert {field.kind for field in REGISTERS["query_exponent"].fields} == {Kind.STORED}


def test_documentation_is_in_step():
    text = (ROOT / "docs" / "registers.md").read_text("utf-8")
    assert text == markdown(), "run scripts/write_registers.py"
    for name, register in REGISTERS.items():
        assert re.search(rf"^\| 0x{register.address:03x}.* \| `{name}[`\[]", text, re.MULTILINE)


def test_c_header_is_in_step(tmp_path):
    """A C program says what the header's names are worth."""
    names = {f"KVTQ_{name.upper()}": register.address for name, register in REGISTERS.items()}
    names |= {
        f"{n}_COUNT": r.count for n, r in zip(names, REGISTERS.values(), strict=True) if r.is_array
    }
    for register in REGISTERS.values():
        for field in register.fields:
            stem = f"KVTQ_{register.name}_{field.name}".upper()
            names |= {f"{stem}_MASK": field.mask, f"{stem}_POSITION": field.low}
    names |= {f"KVTQ_JOB_{status.name}": status.value for status in JobStatus}
    names["KVTQ_MAGIC"] = int.from_bytes(b"KVTQ", "little")
    names |= {f"KVTQ_MAP_{f.name.upper()}": f.reset for f in REGISTERS["version"].fields}
    (tmp_path / "kvtq_registers.h").write_text(c_header())
    lines = "".join(f'printf("{name} %u\\n", (unsigned){name});\n' for name in names)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "kvtq_registers.h"\n'
        f"int main(void) {{\n{lines}return 0;\n}}\n"
    )
    compiler = ["cc", "-Wall", "-Wextra", "-Werror", "-std=c99", "main.c", "-o", "main"]
    subprocess.run(compiler, cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    assert printed == "".join(f"{name} {value}\n" for name, value in names.items())
    defined = set(re.findall(r"^#define (\w+) ", c_header(), re.MULTILINE))
    assert defined == {name for name in names if not name.startswith("KVTQ_JOB_")} | {
        name for name in names if name.startswith("KVTQ_JOB_FLAGS")
    }


#: As much of UVM as a model of registers uses.
UVM = """
package uvm_pkg;
  typedef enum { UVM_NO_COVERAGE } uvm_coverage_model_e;
  typedef enum { UVM_LITTLE_ENDIAN, UVM_NO_ENDIAN } uvm_endianness_e;
  typedef class uvm_reg_block;
  class uvm_reg;
    function new(string name, int unsigned n_bits, int has_coverage); endfunction
    function void configure(uvm_reg_block parent); endfunction
  endclass
  class uvm_reg_field;
    function new(string name); endfunction
    function void configure(uvm_reg parent, int unsigned size, int unsigned lsb, string access,
        bit volatile_, bit [63:0] reset, bit has_reset, bit is_rand, bit accessible);
    endfunction
  endclass
  class uvm_reg_map;
    function void add_reg(uvm_reg register, bit [63:0] offset); endfunction
  endclass
  class uvm_reg_block;
    uvm_reg_map default_map;
    function new(string name = ""); endfunction
    function uvm_reg_map create_map(string name, bit [63:0] base, int unsigned n_bytes,
        uvm_endianness_e endian);
      create_map = new;
    endfunction
  endclass
endpackage
"""


def test_uvm_package_compiles(tmp_path):
    """With slang, on the interface of UVM's register layer."""
    (tmp_path / "uvm_pkg.sv").write_text(UVM)
    (tmp_path / "uvm_macros.svh").write_text("")
    model = uvm_package("registers_pkg")
    for text, clean in ((model, True), (model.replace("this.magic", "this.magics"), False)):
        (tmp_path / "registers_pkg.sv").write_text(text)
        slang = Slang()
        slang.addStandardArgs()
        files = f"{tmp_path}/uvm_pkg.sv {tmp_path}/registers_pkg.sv"
        assert slang.parseCommandLine(f"slang -I{tmp_path} {files}")
        assert slang.processOptions() and slang.parseAllSources()
        found = slang.createCompilation().getAllDiagnostics()
        assert (not any(said.isError() for said in found)) is clean


def test_uvm_package_is_in_step():
    """Classes are named after registers; addresses, widths, access and reset are the map's."""
    text = uvm_package("registers_pkg")
    assert re.findall(r"^(?:end)?package:? (\w+)", text, re.MULTILINE) == ["registers_pkg"] * 2
    places = re.findall(r"add_reg\(this\.(\w+)(\[i0\])?, 'h(\w+)(?: \+ i0\*'h4)?\);", text)
    assert [(name, int(at, 16), bool(many)) for name, many, at in places] == [
        (name + "_" * (name == "table"), register.address, register.is_array)
        for name, register in REGISTERS.items()
    ]
    arrays = dict(re.findall(r"rand kvtq__\w+ (\w+)\[(\d+)\];", text))
    assert arrays == {n: str(r.count) for n, r in REGISTERS.items() if r.is_array}
    access = {Kind.STORED: "RW", Kind.PULSE: "WO", Kind.EVENT: "W1C"}
    classes = re.findall(r"class kvtq__(\w+) extends uvm_reg;(.*?)endclass", text, re.DOTALL)
    assert [name for name, _ in classes] == list(REGISTERS)
    for name, body in classes:
        fields = re.findall(
            r"this\.(\w+)\.configure\(this, (\d+), (\d+), \"(\w+)\", [01], 'h(\w+), ([01]),", body
        )
        assert [(f, int(w), int(at), how, int(r, 16), has) for f, w, at, how, r, has in fields] == [
            (
                field.name,
                field.width,
                field.low,
                access.get(field.kind, "RO"),
                field.reset,
                "0" if field.kind is Kind.INPUT else "1",
            )
            for field in REGISTERS[name].fields
        ]


def test_statuses_are_in_step():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", markdown(), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {s.name: s.value for s in JobStatus}


def test_words_and_fields():
    digits = REGISTERS["digits"]
    word = digits.pack(tier=5, key=3, value=2)
    assert word == 5 | 3 << 8 | 2 << 16
    assert digits.unpack(word) == {"tier": 5, "key": 3, "value": 2}
    assert REGISTERS["query_exponent"].pack(exponent=-2) == 0xFE
    with pytest.raises(ValueError, match=r"^digits\.key: 8 is not allowed; must be -4\.\.7$"):
        digits.pack(key=8)
    with pytest.raises(ValueError, match=r"^digits: 'keys' is unknown; allowed are \['tier', 'key"):
        digits.pack(keys=1)


def test_driver_knows_every_field_of_a_descriptor():
    """Each field of the hardware's layout changes a word of its own."""
    zero = descriptor_words(TINY, {})
    assert set(zero.values()) == {0}
    seen = {}
    for name, _ in descriptor_layout(TINY):
        one = {
            "query_exponent": [1, 0],
            "sink_maximum": [0, 1],
            "sink_weight": [0, 1],
            "key_constants": [0, 1],
            "value_constants": [0, 1],
            "key": {"body": 1 << 32},
            "value": {"body": 1 << 32},
        }.get(name, 1)
        changed = {at: word for at, word in descriptor_words(TINY, {name: one}).items() if word}
        ((address, word),) = changed.items()
        assert (address, word) not in seen.values(), name
        seen[name] = address, word
    with pytest.raises(ValueError, match=r"^job: \['token'\] are unknown$"):
        descriptor_words(TINY, {"token": 1})
    with pytest.raises(ValueError, match=r"^job: \['key\.tail'\] are unknown$"):
        descriptor_words(TINY, {"key": {"tail": 1}})


def test_driver_writes_what_changed():
    driver = Driver(TINY)
    start = REGISTERS["control"].address, 1
    job = {"attend": 1, "tokens": 7, "query_exponent": [3, -1]}
    flags, tokens, exponent = (
        REGISTERS[n].address for n in ("job_flags", "tokens", "query_exponent")
    )
    first = [(flags, 2), (tokens, 7), (exponent, 3), (exponent + 4, 0xFF), start]
    assert driver.start(job) == first
    assert driver.start(job) == [start]
    assert driver.start(job | {"tokens": 8}) == [(tokens, 8), start]
    assert driver.start({}) == [(a, 0) for a, _ in first[:-1]] + [start]
    driver.forget()
    assert driver.start(job) == first
