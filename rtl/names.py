"""Plain names in the RTLIL text of a design, and each of its modules once.

Amaranth numbers names that clash (``i__valid$10``), and names what it cannot find in the source
after places in its netlist (``port$5791$0``). Verilog must escape such names. Here they get plain
ones, and ports get the names and the order of their component's signature. The same text gives the
same names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Interface", "merged", "plainly_named"]

_MODULE = re.compile(r"^module \\(\S+)$", re.MULTILINE)
_CHILD = re.compile(r"^  cell \\(\S+) \\(\S+)$", re.MULTILINE)
_WIRE = re.compile(
    r"^  wire width \d+(?: (input|output) (\d+))? +(?:signed )?\\(\S+)$", re.MULTILINE
)
_MEMORY = re.compile(r"^  memory [^\n]*\\(\S+)$", re.MULTILINE)
_PORT = re.compile(
    r"^(?:  attribute [^\n]*\n)*  wire width \d+ (?:in|out)put (?P<number>\d+) +(?:signed )?"
    r"\\(?P<name>\S+)\n+",
    re.MULTILINE,
)
_PORT_NUMBER = re.compile(r"(?<=put )\d+(?= )")
_NAME = re.compile(r"\\(\S+)")
_MEMORY_OF_CELL = re.compile(r'(?<="\\\\)[^"]+(?=")')
# An unnamed port (`port$...`), and connections that tell what it carries.
_UNNAMED = re.compile(r"\\(port\$\d+\$\d+)\b")
_CONNECT = re.compile(r"^connect \\(\S+) (.*)$", re.MULTILINE)
_WHOLE = re.compile(r"\\(\S+)(?: \[[\d:]+\])?")

# Words of Verilog and SystemVerilog (IEEE 1800-2017, annex B), which cannot be names.
_KEYWORDS = """
accept_on alias always always_comb always_ff always_latch and assert assign assume automatic before
begin bind bins binsof bit break buf bufif0 bufif1 byte case casex casez cell chandle checker class
clocking cmos config const constraint context continue cover covergroup coverpoint cross deassign
default defparam design disable dist do edge else end endcase endchecker endclass endclocking
endconfig endfunction endgenerate endgroup endinterface endmodule endpackage endprimitive endprogram
endproperty endsequence endspecify endtable endtask enum event eventually expect export extends
extern final first_match for force foreach forever fork forkjoin function generate genvar global
highz0 highz1 if iff ifnone ignore_bins illegal_bins implements implies import incdir include
initial inout input inside instance int integer interconnect interface intersect join join_any
join_none large let liblist library local localparam logic longint macromodule matches medium
modport module nand negedge nettype new nexttime nmos nor noshowcancelled not notif0 notif1 null or
output package packed parameter pmos posedge primitive priority program property protected pull0
pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase randsequence
rcmos real realtime ref reg reject_on release repeat restrict return rnmos rpmos rtran rtranif0
rtranif1 s_always s_eventually s_nexttime s_until s_until_with scalared sequence shortint shortreal
showcancelled signed small soft solve specify specparam static string strong strong0 strong1 struct
super supply0 supply1 sync_accept_on sync_reject_on table tagged task this throughout time
timeprecision timeunit tran tranif0 tranif1 tri tri0 tri1 triand trior trireg type typedef union
unique unique0 unsigned until until_with untyped use uwire var vectored virtual void wait wait_order
wand weak weak0 weak1 while wildcard wire with within wor xnor xor
"""


@dataclass(frozen=True)
class Interface:
    """What the source says about a module.

    Parameters
    ----------
    ports : names of ports: Amaranth's (key) and the one wanted, in the order wanted
    comment : what the module is, in a sentence
    """

    ports: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""


def plainly_named(text: str, interfaces: Mapping[str, Interface]) -> tuple[str, dict[str, str]]:
    """Return RTLIL text in which every name is plain, and the new names of its modules.

    A module is called after its place: ``top_sub_inner``. Within a module, ports come first: those
    of `interfaces` (by Amaranth's name of the module) with exactly the name given there, then
    instances, then everything else. A name that is taken, or a keyword, gets a number.

    Raises
    ------
    ValueError
        When two modules, or two ports, would get the same name.
    """
    head, *parts = _MODULE.split(text)
    names, bodies = parts[::2], parts[1::2]
    carried = _carried(text)
    local: dict[str, dict[str, str]] = {}
    modules = {names[0]: names[0]}
    for name, body in zip(names, bodies, strict=True):
        local[name] = _local_names(body, interfaces.get(name, Interface()), carried)
        for child, instance in _CHILD.findall(body):
            modules[child] = f"{modules[name]}_{local[name][instance]}"
    _check_modules(modules)
    written = [head.rstrip("\n")] if head.strip() else []
    for name, body in zip(names, bodies, strict=True):
        order = list(interfaces.get(name, Interface()).ports)
        lines = _renamed(_ports_in_order(body, order), local[name], local, modules)
        written += [f"module \\{modules[name]}", *lines]
    return "\n".join([*written, ""]), modules


def _check_modules(modules: Mapping[str, str]) -> None:
    """Raise ValueError when two modules have the same new name."""
    original: dict[str, str] = {}
    for module, renamed in modules.items():
        if original.setdefault(renamed, module) != module:
            raise ValueError(
                f"modules {original[renamed]!r} and {module!r} would both be named {renamed!r}"
            )


def _carried(text: str) -> dict[str, str]:
    """Return, for each unnamed port, the name of a signal, field or slice that it carries.

    Amaranth numbers such ports after the net, so that all modules tell about one port.
    """
    found: dict[str, str] = {}
    drivers: dict[str, str] = {}
    parts: dict[str, str] = {}
    for target, source in _CONNECT.findall(text):
        unnamed = _UNNAMED.fullmatch(f"\\{target}")
        if unnamed:
            drivers.setdefault(source, target)
            if source.startswith("\\") and "port$" not in source:
                parts.setdefault(target, source)
        elif "\\port$" in source:
            whole = _WHOLE.fullmatch(source)
            if whole:
                found.setdefault(whole[1], target)
            for port in _UNNAMED.findall(source):
                parts.setdefault(port, f"{target}_part")
        elif source in drivers:
            found.setdefault(drivers[source], target)
    return parts | found


def _base(name: str, carried: Mapping[str, str]) -> str:
    """Return the plain name nearest to a name: numbers of Amaranth dropped, signs as ``_``."""
    if _UNNAMED.fullmatch(f"\\{name}"):
        name = carried.get(name, "port")
    name = re.sub(r"\W+", "_", re.sub(r"(?<=.)\$\d+", "", name), flags=re.ASCII).strip("_")
    return name if name and not name[0].isdigit() else f"n_{name}"


def _local_names(body: str, interface: Interface, carried: Mapping[str, str]) -> dict[str, str]:
    """Return the new name of everything in a module that has one."""
    wires = _WIRE.findall(body)
    ports = [name for direction, _, name in wires if direction]
    instances = [instance for _, instance in _CHILD.findall(body)]
    memories = _MEMORY.findall(body)
    inner = [name for direction, _, name in wires if not direction]
    names: dict[str, str] = {}
    taken: set[str] = set(_KEYWORDS.split())
    for name in ports:
        if name in interface.ports:
            wanted = interface.ports[name]
            if wanted in taken:
                raise ValueError(
                    f"port: the name {wanted!r} is taken by another port, or is a keyword"
                )
            names[name] = wanted
            taken.add(wanted)
    plain_first = sorted([*memories, *inner], key=lambda name: not re.fullmatch(r"\w+", name))
    for name in [*ports, *instances, *plain_first]:
        if name not in names:
            base = chosen = _base(name, carried)
            number = 1
            while chosen in taken:
                number += 1
                chosen = f"{base}_{number}"
            names[name] = chosen
            taken.add(chosen)
    return names


def _ports_in_order(body: str, order: list[str]) -> str:
    """Return a module's text that begins with its ports: clock, reset, those of `order`, others."""
    places = {name: place for place, name in enumerate(["clk", "rst", "rst_n", *order])}
    ports = [(match["name"], match["number"], match[0]) for match in _PORT.finditer(body)]
    ports.sort(key=lambda port: (places.get(port[0], len(places)), int(port[1])))
    # numbered from 1: Yosys puts a port numbered 0 last
    declarations = [
        _PORT_NUMBER.sub(str(number), declaration)
        for number, (_, _, declaration) in enumerate(ports, 1)
    ]
    return "".join([*declarations, _PORT.sub("", body).lstrip("\n")])


def _renamed(
    body: str,
    own: Mapping[str, str],
    local: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str],
) -> Iterator[str]:
    """Yield a module's lines with new names."""
    changed = {old: new for old, new in own.items() if old != new}

    def rename(match: re.Match[str]) -> str:
        return f"\\{changed.get(match[1], match[1])}"

    ports: Mapping[str, str] | None = None
    for line in body.strip("\n").split("\n"):
        if "\\" not in line:
            if line == "  end":
                ports = None
            yield line
            continue
        first, _, rest = line.strip().partition(" ")
        if first == "cell" and rest.startswith("\\"):
            child, _, instance = rest.partition(" ")
            ports = local[child[1:]]
            yield f"  cell \\{modules[child[1:]]} {_NAME.sub(rename, instance)}"
        elif first == "parameter":
            yield _MEMORY_OF_CELL.sub(lambda match: changed.get(match[0], match[0]), line)
        elif first == "attribute":
            yield line
        elif first == "connect" and line.startswith("    "):
            port, _, value = rest.partition(" ")
            if ports is not None:
                port = f"\\{ports[port[1:]]}"
            yield f"    connect {port} {_NAME.sub(rename, value)}"
        else:
            yield _NAME.sub(rename, line)


def merged(text: str) -> str:
    """Return RTLIL text with each of several identical modules once, under the first one's name."""
    head, *parts = _MODULE.split(text)
    names, bodies = parts[::2], parts[1::2]
    kinds: dict[str, str] = {}
    first: dict[str, str] = {}
    numbers: dict[str, str] = {}
    # Instances come after what contains them, so that inner modules are compared before outer ones.
    for name, body in zip(reversed(names), reversed(bodies), strict=True):
        kind = _CHILD.sub(lambda match: f"  cell \\@{kinds[match[1]]} \\{match[2]}", body)
        kinds[name] = numbers.setdefault(kind.strip(), str(len(numbers)))
        first[kinds[name]] = name
    written = [head]
    for name, body in zip(names, bodies, strict=True):
        if first[kinds[name]] == name:
            inner = _CHILD.sub(
                lambda match: f"  cell \\{first[kinds[match[1]]]} \\{match[2]}", body
            )
            written.append(f"module \\{name}{inner}")
    return "".join(written)
