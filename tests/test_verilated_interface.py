"""What Python and C++ of verilated designs exchange: a field of one side only is an error."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from needs import missing

from kvtq_hw.contract.config import load_config
from sim.verilated import library
from sim.verilated.engine import VerilatedEngine
from sim.verilated.header import check_layout, header
from sim.verilated.interface import (
    STRUCTURES,
    AcceleratorCall,
    Access,
    EngineCall,
    packets,
    pointer,
    stream,
)

TINY = load_config("tiny")
Compile = Callable[[str], Path]


@pytest.fixture
def compile_header(tmp_path) -> Compile:
    """Compile the text of a header into a library of its own; its path."""
    compiler = shutil.which("c++")
    if compiler is None:
        missing("simulators", "no C++ compiler on PATH; Debian and Ubuntu: sudo apt install g++")

    def compiled(text: str) -> Path:
        source, built = tmp_path / "interface.cpp", tmp_path / "interface.so"
        source.write_text(text)
        command = [compiler, "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr)
        return built

    return compiled


def changed(structure: type[ctypes.Structure], fields) -> list[type[ctypes.Structure]]:
    """All structures, one of them with other fields."""
    other = type(structure.__name__, (ctypes.Structure,), {"_fields_": tuple(fields)})
    return [other if one is structure else one for one in STRUCTURES]


def test_the_compiler_has_the_layout_of_python(compile_header) -> None:
    check_layout(ctypes.CDLL(str(compile_header(header()))))


KIND, ADDRESS, DATA, MASK = FIELDS = Access._fields_
COUNT = sum(1 + len(structure._fields_) for structure in STRUCTURES)
CHANGES = {
    "one field more": (
        [*FIELDS, ("strobes", ctypes.c_uint32)],
        f"it has {COUNT + 1} structures and fields, must be {COUNT}",
    ),
    "one field less": (
        [KIND, ADDRESS, DATA],
        f"it has {COUNT - 1} structures and fields, must be {COUNT}",
    ),
    "a wider field": (
        [KIND, ADDRESS, DATA, ("mask", ctypes.c_uint64)],
        "sizeof(Access) is 24, must be 16",
    ),
    "two fields in another order": (
        [KIND, DATA, ADDRESS, MASK],
        "offsetof(Access, address) is 8, must be 4",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_library_with_other_fields_is_refused(compile_header, name) -> None:
    fields, message = CHANGES[name]
    built = compile_header(header(changed(Access, fields)))
    with pytest.raises(ValueError) as caught:
        check_layout(ctypes.CDLL(str(built)))
    assert str(caught.value) == message


def test_a_field_that_only_cpp_changed_does_not_compile(compile_header) -> None:
    text = header().replace("uint32_t latency;", "uint64_t latency;")
    with pytest.raises(ValueError, match=r"static assertion failed") as caught:
        compile_header(text)
    assert "offsetof(Memory, outstanding) == 40" in str(caught.value)


def test_a_design_with_other_fields_is_refused(compile_header, monkeypatch) -> None:
    built = compile_header(header(changed(Access, FIELDS[1:])))
    monkeypatch.setattr(library, "_build", lambda *arguments: built)
    with pytest.raises(library.SimulationError) as caught:
        VerilatedEngine(TINY)
    assert str(caught.value).startswith(f"{built}: it has ")
    assert str(caught.value).endswith("; delete this file")


def test_the_header_is_part_of_the_build_s_key(monkeypatch, tmp_path) -> None:
    built = []

    def compile_nothing(tool, work, top, shim, trace, quick) -> Path:
        built.append((work / "interface.h").read_text())
        (work / "design.so").touch()
        return work / "design.so"

    monkeypatch.setattr(library, "_compile", compile_nothing)
    monkeypatch.setattr(library, "cached_verilog", lambda *arguments: "")
    first = library._build("engine", TINY, tmp_path, trace=False, quick=False)
    assert built == [header()]
    monkeypatch.setattr(library, "header", lambda: "// another")
    assert library._build("engine", TINY, tmp_path, trace=False, quick=False) != first
    assert built == [header(), "// another"]


def test_arrays_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^the array of int64 must be contiguous and of uint32$"):
        pointer(np.zeros(3, np.int64), ctypes.c_uint32)
    with pytest.raises(TypeError, match=r"^the array of uint32 must be contiguous and of uint32$"):
        stream(np.zeros((4, 4), np.uint32)[:, :2])
    with pytest.raises(TypeError, match=r"^the array of int8 must be contiguous and of uint8$"):
        packets(np.zeros((1, 1), np.uint32), np.zeros(1, np.int8))


def test_streams_of_a_call_are_the_arrays() -> None:
    words = np.arange(6, dtype=np.uint32).reshape(3, 2)
    cycles = np.zeros(3, np.uint64)
    call = EngineCall(keys=stream(words, 0.25, cycles))
    assert (call.keys.words, call.keys.stall, call.keys.count, call.keys.done) == (2, 64, 3, 0)
    assert call.keys.payloads[:6] == [0, 1, 2, 3, 4, 5]
    call.keys.cycles[2] = 7
    assert cycles.tolist() == [0, 0, 7]
    assert not call.values.payloads  # a stream that is not given is empty
    beats = AcceleratorCall(output=packets(words, np.ones(3, np.uint8))).output
    assert (beats.count, beats.last[:3], bool(beats.user)) == (3, [1, 1, 1], False)
