"""The register map: what it says, and that documentation, C header and driver say the same."""

from __future__ import annotations

import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.registers import (
    ADDRESS_BITS,
    WORD_BYTES,
    JobStatus,
    Kind,
    c_header,
    markdown,
    register_map,
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
