"""IP-XACT (IEEE 1685-2014) of the accelerator: registers, bus interfaces, ports and files.

PeakRDL writes the memory map from the register map. The rest is what the manifest says: a bus
interface per AXI port, and for clock, reset and interrupt. Bus definitions are named, not included:
AXI's are Arm's (``amba.com``), those of single signals are AMD's (``xilinx.com:signal``), as Arm
has none.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from xml.etree import ElementTree

from peakrdl_ipxact import IPXACTExporter, Standard

from kvtq_hw import __version__
from kvtq_hw.contract.files import read_text, scratch_folder
from kvtq_hw.contract.registers import register_tree

__all__ = ["ipxact_component"]

_NAMESPACE = "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"
_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
_REGISTERS, _MEMORY = "s_axil", "m_axi"  # the ports that registers and memory are at


class _Bus(NamedTuple):
    """Names of a bus definition; its abstraction is called ``name_rtl``."""

    vendor: str
    library: str
    name: str
    version: str


_BUSES = {
    "Axi4Lite": _Bus("amba.com", "AMBA4", "AXI4-Lite", "r0p0_0"),
    "Axi4": _Bus("amba.com", "AMBA4", "AXI4", "r0p0_0"),
    "AxiStream": _Bus("amba.com", "AMBA4", "AXI4Stream", "r0p0_1"),
}

#: Sets of files by the ending of a file's name: name of the set, type of the file.
_FILES = {
    ".v": ("rtl", "verilogSource"),
    ".sdc": ("constraints", "SDC"),
    ".sv": ("verification", "systemVerilogSource"),
    ".h": ("software", "cSource"),
    ".c": ("software", "cSource"),
}


def ipxact_component(manifest: dict[str, Any]) -> str:
    """Return the XML of the accelerator that a manifest (`rtl.manifest`) describes."""
    for prefix, uri in (("ipxact", _NAMESPACE), ("xsi", _INSTANCE)):
        ElementTree.register_namespace(prefix, uri)
    root = _registers(manifest["top"])
    place, maps = next(
        (at, child) for at, child in enumerate(root) if child.tag == _tag("memoryMaps")
    )
    root.insert(place, _address_space(manifest))
    root.insert(place, _interfaces(manifest, maps[0].findtext(_tag("name"), "")))
    _add_model(root, manifest)
    _add_files(root, manifest["files"])
    configuration = manifest["configuration"]["name"]
    text = "Attention on a ternary KV cache, configuration {}, digest {}. {}."
    _add(root, "description", text.format(configuration, manifest["digest"], manifest["generator"]))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _registers(name: str) -> ElementTree.Element:
    """Return a component that has the memory map alone."""
    exporter = IPXACTExporter(
        standard=Standard.IEEE_1685_2014, vendor="kvtq-hw", library="kvtq", version=__version__
    )
    with scratch_folder() as folder:
        path = folder / "component.xml"
        exporter.export(register_tree(), str(path), component_name=name)
        return ElementTree.fromstring(read_text(path, "component"))


def _interfaces(manifest: dict[str, Any], memory_map: str) -> ElementTree.Element:
    """Return the bus interfaces; the registers' one refers to a memory map of this name."""
    interfaces = ElementTree.Element(_tag("busInterfaces"))
    names = [port["name"] for port in manifest["ports"]]
    for bus in manifest["buses"]:
        prefix = f"{bus['name']}_"
        ports = {
            name.removeprefix(prefix).upper(): name for name in names if name.startswith(prefix)
        }
        interface = _interface(interfaces, bus["name"], _BUSES[bus["protocol"]], ports)
        mode = _add(interface, "slave" if bus["direction"] == "in" else "master")
        if bus["name"] == _REGISTERS:
            _add(mode, "memoryMapRef", memoryMapRef=memory_map)
        elif bus["name"] == _MEMORY:
            _add(mode, "addressSpaceRef", addressSpaceRef=_MEMORY)
    reset, clock = manifest["reset"]["port"], manifest["clock"]["port"]
    buses = ":".join(bus["name"] for bus in manifest["buses"])
    _signal(interfaces, "clock", "slave", clock, ASSOCIATED_BUSIF=buses, ASSOCIATED_RESET=reset)
    polarity = f"ACTIVE_{manifest['reset']['active'].upper()}"
    _signal(interfaces, "reset", "slave", reset, POLARITY=polarity)
    for signal in manifest["signals"]:
        _signal(interfaces, "interrupt", "master", signal["name"], SENSITIVITY="LEVEL_HIGH")
    return interfaces


def _interface(
    interfaces: ElementTree.Element, name: str, bus: _Bus, ports: dict[str, str]
) -> ElementTree.Element:
    """Add a bus interface, without its mode, whose `ports` are physical ports by logical name."""
    interface = _add(interfaces, "busInterface")
    _add(interface, "name", name)
    _add(interface, "busType", **bus._asdict())
    kind = _add(_add(interface, "abstractionTypes"), "abstractionType")
    _add(kind, "abstractionRef", **bus._replace(name=f"{bus.name}_rtl")._asdict())
    maps = _add(kind, "portMaps")
    for logical, physical in ports.items():
        one = _add(maps, "portMap")
        _add(_add(one, "logicalPort"), "name", logical)
        _add(_add(one, "physicalPort"), "name", physical)
    return interface


def _signal(
    interfaces: ElementTree.Element, kind: str, mode: str, port: str, **parameters: str
) -> None:
    """Add the interface of a clock, reset or interrupt, with parameters that AMD's tools read."""
    logical = {"clock": "CLK", "reset": "RST", "interrupt": "INTERRUPT"}[kind]
    bus = _Bus("xilinx.com", "signal", kind, "1.0")
    interface = _interface(interfaces, port, bus, {logical: port})
    _add(interface, mode)
    listed = _add(interface, "parameters")
    for name, value in parameters.items():
        parameter = _add(listed, "parameter", parameterId=f"{port}_{name}", type="string")
        _add(parameter, "name", name)
        _add(parameter, "value", f'"{value}"')


def _address_space(manifest: dict[str, Any]) -> ElementTree.Element:
    """Return the address space that the memory port reaches."""
    spaces = ElementTree.Element(_tag("addressSpaces"))
    space = _add(spaces, "addressSpace")
    _add(space, "name", _MEMORY)
    _add(space, "range", f"'h{1 << manifest['configuration']['address_bits']:x}")
    _add(space, "width", str(manifest["configuration"]["memory_bits"]))
    return spaces


def _add_model(root: ElementTree.Element, manifest: dict[str, Any]) -> None:
    """Add the view of the Verilog, and every port."""
    model = _add(root, "model")
    view = _add(_add(model, "views"), "view")
    _add(view, "name", "rtl")
    _add(view, "envIdentifier", ":*Synthesis:")
    _add(view, "envIdentifier", ":*Simulation:")
    _add(view, "componentInstantiationRef", "verilog")
    instance = _add(_add(model, "instantiations"), "componentInstantiation")
    _add(instance, "name", "verilog")
    _add(instance, "language", "verilog")
    _add(instance, "moduleName", manifest["top"])
    _add(_add(instance, "fileSetRef"), "localName", "rtl")
    ports = _add(model, "ports")
    for entry in manifest["ports"]:
        port = _add(ports, "port")
        _add(port, "name", entry["name"])
        wire = _add(port, "wire")
        _add(wire, "direction", entry["direction"])
        if entry["width"] > 1:
            vector = _add(_add(wire, "vectors"), "vector")
            _add(vector, "left", str(entry["width"] - 1))
            _add(vector, "right", "0")


def _add_files(root: ElementTree.Element, files: list[str]) -> None:
    """Add the files that tools know, in sets."""
    sets: dict[str, ElementTree.Element] = {}
    listed = _add(root, "fileSets")
    for file in files:
        name, kind = _FILES.get(file[file.rindex(".") :], ("", ""))
        if not name:
            continue
        if name not in sets:
            sets[name] = _add(listed, "fileSet")
            _add(sets[name], "name", name)
        entry = _add(sets[name], "file")
        _add(entry, "name", file)
        _add(entry, "fileType", kind)
        if file.endswith(".h"):
            _add(entry, "isIncludeFile", "true")


def _add(
    parent: ElementTree.Element, name: str, text: str | None = None, /, **attributes: str
) -> ElementTree.Element:
    """Add an element of IP-XACT's namespace and return it."""
    element = ElementTree.SubElement(parent, _tag(name), attributes)
    element.text = text
    return element


def _tag(name: str) -> str:
    return f"{{{_NAMESPACE}}}{name}"
