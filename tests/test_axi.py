"""AXI ports: their names in Verilog, what is joined to what, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from bench_matrix import TINY

from rtl.axi import (
    Axi4,
    Axi4Lite,
    Axi4Read,
    Axi4Write,
    AxiStream,
    drive_attributes,
    join_ports,
    read_addresses,
    write_addresses,
)
from rtl.manifest import manifest
from rtl.verilog import emit, port_members


class Half(wiring.Component):
    """A manager that offers one address for ever."""

    def __init__(self, signature: wiring.Signature, addresses: Callable[[Any], Any]) -> None:
        self._addresses = addresses
        super().__init__({"bus": Out(signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        channel = self._addresses(self.bus)
        drive_attributes(m, channel)
        m.d.comb += [channel.valid.eq(1), channel.len.eq(3), channel.addr.eq(4096)]
        return m


class Whole(wiring.Component):
    """Two halves on one port, beside ports of the other protocols."""

    def __init__(self, **more: Any) -> None:
        super().__init__(
            {
                "m_axi": Out(Axi4(40, 128)),
                "s_axil": In(Axi4Lite(8)),
                "s_axis_query": In(AxiStream(24)),
                "m_axis_output": Out(AxiStream(32, user_bits=6)),
                **more,
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reader = reader = Half(Axi4Read(40, 128), read_addresses)
        m.submodules.writer = writer = Half(Axi4Write(40, 128), write_addresses)
        join_ports(m, self.m_axi, reader.bus, writer.bus)
        m.d.comb += self.s_axil.awready.eq(self.s_axil.awvalid)
        return m


def declared(verilog: str) -> dict[str, tuple[str, int]]:
    """Direction and width of the top module's ports."""
    top = verilog[verilog.index("\nmodule whole(") :].split("endmodule")[0]
    ports = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\S+);$", top, re.MULTILINE)
    return {name: (direction, int(high or 0) + 1) for direction, high, name in ports}


def test_names_in_verilog() -> None:
    component = Whole()
    text = emit(component, "whole", "")
    ports = declared(text)
    assert set(ports) == {"clk", "rst", *port_members(component)}
    assert ports["m_axi_araddr"] == ("output", 40)
    assert ports["m_axi_arready"] == ("input", 1)
    assert ports["m_axi_rdata"] == ("input", 128)
    assert ports["m_axi_wstrb"] == ("output", 16)
    assert ports["m_axi_bready"] == ("output", 1)
    assert ports["s_axil_awaddr"] == ("input", 8)
    assert ports["s_axil_rresp"] == ("output", 2)
    assert ports["s_axis_query_tdata"] == ("input", 24)
    assert ports["s_axis_query_tready"] == ("output", 1)
    assert ports["m_axis_output_tuser"] == ("output", 6)
    assert ports["m_axis_output_tlast"] == ("output", 1)
    assert "s_axis_query_tuser" not in ports
    assert not re.search(r"(axil?|output|query)__", text)


def test_attributes_and_join() -> None:
    text = emit(Whole(), "whole", "")
    for channel in ("ar", "aw"):
        assert f"assign m_axi_{channel}size = 3'h4;" in text  # 16 bytes
        assert f"assign m_axi_{channel}burst = 2'h1;" in text
        assert f"assign m_axi_{channel}cache = 4'h3;" in text
        for name, bits in (("id", 1), ("lock", 1), ("prot", 3), ("qos", 4)):
            assert f"assign m_axi_{channel}{name} = {bits}'h0;" in text
        assert f"assign m_axi_{channel}valid = 1'h1;" in text
        assert f"assign m_axi_{channel}len = 8'h03;" in text
        assert f"assign m_axi_{channel}addr = 40'h0000001000;" in text


def test_manifest_lists_buses() -> None:
    description = manifest(Whole(), "whole", TINY, [])
    assert description["buses"] == [
        {"name": "m_axi", "direction": "out", "protocol": "Axi4"},
        {"name": "s_axil", "direction": "in", "protocol": "Axi4Lite"},
        {"name": "s_axis_query", "direction": "in", "protocol": "AxiStream"},
        {"name": "m_axis_output", "direction": "out", "protocol": "AxiStream"},
    ]
    assert {"name": "m_axi_arlen", "direction": "out", "width": 8} in description["ports"]
    assert {"name": "s_axil_bready", "direction": "in", "width": 1} in description["ports"]


def test_name_that_is_taken() -> None:
    message = r"^port: the name 'm_axi_awaddr' is taken by another port$"
    with pytest.raises(ValueError, match=message):
        emit(Whole(m_axi_awaddr=In(3)), "whole", "")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Axi4(11, 64), ValueError, "address_bits: 11 is not allowed; must be 12..64"),
        (lambda: Axi4Read(65, 64), ValueError, "address_bits: 65 is not allowed; must be 12..64"),
        (lambda: Axi4Read(32, 48), ValueError, "data_bits: 48 is not allowed; must be a power of"),
        (lambda: Axi4Write(32, 2048), ValueError, "data_bits: 2048 is not allowed; must be 8..10"),
        (lambda: Axi4(32, 64, 0), ValueError, "id_bits: 0 is not allowed; must be 1..32"),
        (lambda: Axi4(32.0, 64), TypeError, "address_bits: 32.0 is not an integer"),
        (lambda: Axi4Lite(0), ValueError, "address_bits: 0 is not allowed; must be 1..64"),
        (lambda: Axi4Lite(8, 48), ValueError, "data_bits: 48 is not allowed; must be 32 or 64"),
        (lambda: AxiStream(12), ValueError, "data_bits: 12 is not allowed; must be a multiple of"),
        (lambda: AxiStream(0), ValueError, "data_bits: 0 is not allowed; must be 8..65536"),
        (lambda: AxiStream(8, -1), ValueError, "user_bits: -1 is not allowed; must be 0..65536"),
    ],
)
def test_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()
