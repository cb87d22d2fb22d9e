"""The accelerator's register map: reads registers.rdl (SystemRDL 2.0), writes C, Markdown and UVM.

Hardware (`rtl.control`), driver (`sim.host.driver`), the C header, docs/registers.md, the register
model for UVM and the memory map of IP-XACT (`rtl.ipxact`) all come from registers.rdl. PeakRDL's
exporters write UVM and IP-XACT. C and Markdown are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import cache
from importlib import resources

from systemrdl import RDLCompiler
from systemrdl.node import AddrmapNode, FieldNode, Node, RegNode

from kvtq_hw.contract.files import read_text, scratch_folder

__all__ = [
    "ADDRESS_BITS",
    "WORD_BYTES",
    "Field",
    "JobStatus",
    "Kind",
    "Register",
    "c_header",
    "markdown",
    "rdl_text",
    "register_map",
    "register_tree",
    "uvm_package",
]

_SOURCE = resources.files("kvtq_hw.contract") / "registers.rdl"

_KEYWORDS = ("table",)  # names of registers that SystemVerilog has other uses for

#: Bits of a byte address in the map.
ADDRESS_BITS = 10

#: Bytes per register.
WORD_BYTES = 4


class JobStatus(IntEnum):
    """How a job ended; `job_status` of the register map."""

    OK = 0
    NO_TOKENS = 1
    TOO_MANY_TOKENS = 2
    BAD_CODE = 3
    READ_ERROR = 4
    READ_TRUNCATED = 5
    WRITE_ERROR = 6


class Kind(Enum):
    """How hardware and software access a field; the value is the column "access" of the page."""

    CONSTANT = "constant"  #: software reads the reset value
    INPUT = "read"  #: software reads a value of the hardware
    STORED = "read, write"  #: software writes a value, the hardware reads it
    PULSE = "write 1: a pulse"  #: writing 1 gives the hardware a pulse of one cycle
    EVENT = "read, write 1 to clear"  #: set by the hardware, cleared by software


@dataclass(frozen=True)
class Field:
    """A field of a register: `width` bits from bit `low` on."""

    name: str
    low: int
    width: int
    kind: Kind
    reset: int
    description: str

    @property
    def mask(self) -> int:
        """Mask of the field's bits in the register."""
        return ((1 << self.width) - 1) << self.low


@dataclass(frozen=True)
class Register:
    """A register, or an array (`is_array`) of `count` registers; `address` in bytes."""

    name: str
    title: str
    description: str
    address: int
    count: int
    is_array: bool
    fields: tuple[Field, ...]

    def pack(self, /, **values: int) -> int:
        """Return the register word with these field values; negative values in two's complement.

        Raises
        ------
        ValueError
            For a field that the register does not have, or a value that does not fit its field.
        """
        word = 0
        by_name = {field.name: field for field in self.fields}
        for name, value in values.items():
            if name not in by_name:
                raise ValueError(f"{self.name}: {name!r} is unknown; allowed are {list(by_name)}")
            field = by_name[name]
            low, high = -(1 << field.width - 1), (1 << field.width) - 1
            if not low <= value <= high:
                raise ValueError(
                    f"{self.name}.{name}: {value} is not allowed; must be {low}..{high}"
                )
            word |= value << field.low & field.mask
        return word

    def unpack(self, word: int) -> dict[str, int]:
        """Return the field values of a register word, unsigned."""
        return {field.name: (word & field.mask) >> field.low for field in self.fields}


@cache
def register_map() -> Mapping[str, Register]:
    """Return all registers by name, in the order of their addresses."""
    return {node.inst_name: _register(node) for node in register_tree().registers(unroll=False)}


@cache
def register_tree() -> AddrmapNode:
    """Return the map as systemrdl-compiler has it: what PeakRDL's exporters take."""
    compiler = RDLCompiler()
    with resources.as_file(_SOURCE) as path:
        compiler.compile_file(str(path))
    return compiler.elaborate().top


def _register(node: RegNode) -> Register:
    return Register(
        node.inst_name,
        node.get_property("name"),
        _description(node),
        node.raw_address_offset,
        node.array_dimensions[0] if node.array_dimensions else 1,
        node.is_array,
        tuple(_field(field) for field in node.fields()),
    )


def _field(node: FieldNode) -> Field:
    software, hardware = node.get_property("sw").name, node.get_property("hw").name
    if node.get_property("singlepulse"):
        kind = Kind.PULSE
    elif node.get_property("woclr") and node.get_property("hwset"):
        kind = Kind.EVENT
    else:
        kinds = {("r", "na"): Kind.CONSTANT, ("r", "w"): Kind.INPUT, ("rw", "r"): Kind.STORED}
        kind = kinds[software, hardware]
    reset = node.get_property("reset")
    return Field(
        node.inst_name,
        node.low,
        node.width,
        kind,
        reset if isinstance(reset, int) else 0,  # a field without a reset value is not stored
        _description(node),
    )


def _description(node: AddrmapNode | RegNode | FieldNode) -> str:
    return " ".join((node.get_property("desc") or "").split())


def rdl_text() -> str:
    """Return the text of registers.rdl."""
    return _SOURCE.read_text("utf-8")


def uvm_package(name: str) -> str:
    """Return a SystemVerilog package of this name: the map as a `uvm_reg_block` called ``kvtq``.

    A register whose name is a keyword of SystemVerilog has a ``_`` behind its name: ``table_``.
    """
    from peakrdl_uvm import UVMExporter

    class Exporter(UVMExporter):
        def _get_inst_name(self, node: Node) -> str:
            return node.inst_name + ("_" if node.inst_name in _KEYWORDS else "")

    with scratch_folder() as folder:
        path = folder / f"{name}.sv"
        Exporter().export(register_tree(), str(path))
        return read_text(path, "package")


# PeakRDL's header has a packed structure, and neither addresses nor statuses: our driver reaches
# registers by address, over any bus.
def c_header() -> str:
    """Return a C header with the map's addresses, masks and positions, and the job statuses."""
    lines = [
        "/* Registers of the kvtq-hw accelerator: generated from registers.rdl. */",
        "#ifndef KVTQ_REGISTERS_H",
        "#define KVTQ_REGISTERS_H",
        "",
        "/* Byte address of each register; of an array's first, then one per word. */",
    ]
    registers = register_map().values()
    lines += [f"#define KVTQ_{r.name.upper()} 0x{r.address:03x}u" for r in registers]
    lines += ["", "/* Numbers of registers in a row. */"]
    lines += [f"#define KVTQ_{r.name.upper()}_COUNT {r.count}u" for r in registers if r.is_array]
    lines += ["", "/* Fields: mask within the register, and position of the lowest bit. */"]
    for register in registers:
        for field in register.fields:
            name = f"KVTQ_{register.name}_{field.name}".upper()
            lines += [
                f"#define {name}_MASK 0x{field.mask:08x}u",
                f"#define {name}_POSITION {field.low}u",
            ]
    magic = register_map()["identity"].fields[0].reset
    lines += ["", "/* What KVTQ_IDENTITY reads. */", f"#define KVTQ_MAGIC 0x{magic:08x}u"]
    lines += ["", "/* Version of this map. */"]
    version = register_map()["version"].fields
    lines += [f"#define KVTQ_MAP_{field.name.upper()} {field.reset}u" for field in version]
    lines += ["", "/* How a job ended. */", "enum kvtq_job_status {"]
    lines += [f"    KVTQ_JOB_{name} = {value}," for name, value, _ in _statuses()]
    lines += ["};", "", "#endif"]
    return "\n".join(lines) + "\n"


# PeakRDL's page lists each register of an array, and does not say what a job's status means.
def markdown() -> str:
    """Return the text of docs/registers.md."""
    lines = ["# Registers", "", _description(register_tree()), ""]
    lines += [
        "Generated from `kvtq_hw/contract/registers.rdl` by `scripts/write_registers.py`; "
        "`kvtq-hw generate` writes the C header.",
        "",
        "| address | register | bits | field | access | reset | |",
        "|---|---|---|---|---|---|---|",
    ]
    for register in register_map().values():
        address, name = f"0x{register.address:03x}", f"`{register.name}`"
        if register.is_array:
            last = register.address + WORD_BYTES * (register.count - 1)
            address, name = f"{address} .. 0x{last:03x}", f"`{register.name}[{register.count}]`"
        lines.append(
            f"| {address} | {name} | | | | | **{register.title}.** {register.description} |"
        )
        for field in register.fields:
            high = field.low + field.width - 1
            bits = str(high) if field.width == 1 else f"{high}:{field.low}"
            reset = "" if field.kind is Kind.INPUT else f"{field.reset:#x}"
            row = ("", "", bits, f"`{field.name}`", field.kind.value, reset, field.description)
            lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## Status of a job", "", "| code | name | |", "|---|---|---|"]
    lines += [f"| {value} | `{name}` | {desc} |" for name, value, desc in _statuses()]
    return "\n".join(lines) + "\n"


def _statuses() -> list[tuple[str, int, str]]:
    """Return name, code and description of each `job_status`."""
    (field,) = next(r for r in register_tree().registers() if r.inst_name == "last_status").fields()
    encoding = field.get_property("encode")
    if encoding is None:
        raise ValueError("last_status.status has no encoding")
    return [(s.name.upper(), int(s.value), s.rdl_desc or "") for s in encoding.members.values()]
