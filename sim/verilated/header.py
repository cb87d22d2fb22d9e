"""The C++ header of `sim.verilated.interface`, and the check that a library matches it.

The compiler checks that C++ lays out every structure as ctypes does (``static_assert``).
`check_layout` checks a loaded library through ``kvtq_sizes``: a field that exists in C++ or in
Python alone raises an error instead of reading garbage.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

from sim.verilated.interface import ENUMERATIONS, STRUCTURES, UNIT

__all__ = ["check_layout", "header"]

Structures = Sequence[type[ctypes.Structure]]

_NAMES: dict[Any, str] = {
    ctypes.c_uint8: "uint8_t",
    ctypes.c_int8: "int8_t",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_uint64: "uint64_t",
}


def header(structures: Structures = STRUCTURES) -> str:
    """Return the C++ header: enumerations, structures and their layout, and ``kvtq_sizes``."""
    lines = [
        "// Made of sim/verilated/interface.py, which says what each field is.",
        "#pragma once",
        "#include <cstddef>",
        "#include <cstdint>",
        "namespace kvtq {",
        f"constexpr uint32_t UNIT = {UNIT};",
    ]
    for enumeration in ENUMERATIONS:
        values = ", ".join(f"{member.name} = {member.value}" for member in enumeration)
        lines.append(f"enum {enumeration.__name__} : uint32_t {{ {values} }};")
    for structure in structures:
        fields = [f"    {_declaration(*field)};" for field in structure._fields_]
        lines += [f"struct {structure.__name__} {{", *fields, "};"]
    layout = list(_layout(structures))
    lines += [f"static_assert({measured} == {size});" for measured, size in layout]
    sizes = ", ".join([str(len(layout)), *(measured for measured, _ in layout)])
    lines += [
        f"constexpr uint64_t SIZES[] = {{{sizes}}};",
        "}  // namespace kvtq",
        'extern "C" const uint64_t* kvtq_sizes() { return kvtq::SIZES; }',
    ]
    return "\n".join(lines) + "\n"


def check_layout(library: ctypes.CDLL) -> None:
    """Compare the structures of a loaded library with the structures in Python.

    Raises
    ------
    ValueError
        When the structures differ; the message names the first difference.
    """
    library.kvtq_sizes.restype = ctypes.POINTER(ctypes.c_uint64)
    found = library.kvtq_sizes()
    layout = list(_layout(STRUCTURES))
    if found[0] != len(layout):
        raise ValueError(f"it has {found[0]} structures and fields, must be {len(layout)}")
    for (measured, size), got in zip(layout, found[1 : len(layout) + 1], strict=True):
        if got != size:
            raise ValueError(f"{measured} is {got}, must be {size}")


def _layout(structures: Structures) -> Iterator[tuple[str, int]]:
    """Yield each structure's size and each field's offset: the C++ expression and ctypes' value."""
    for structure in structures:
        yield f"sizeof({structure.__name__})", ctypes.sizeof(structure)
        for name in sorted(field[0] for field in structure._fields_):
            offset = getattr(structure, name).offset
            yield f"offsetof({structure.__name__}, {name})", offset


def _declaration(name: str, kind: Any) -> str:
    """Return the C++ declaration of a field."""
    if issubclass(kind, ctypes.Array):
        return f"{_type_name(kind._type_)} {name}[{kind._length_}]"
    return f"{_type_name(kind)} {name}"


def _type_name(kind: Any) -> str:
    if issubclass(kind, ctypes._Pointer):
        return f"{_type_name(kind._type_)}*"
    return _NAMES.get(kind, kind.__name__)
