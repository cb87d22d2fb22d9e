"""AXI ports: signatures of the three protocols (ARM IHI 0022 and IHI 0051), and joining of ports.

Members carry the protocols' own names. A port of the top module called ``m_axi`` is a set of plain
Verilog ports ``m_axi_arvalid``, ``m_axi_araddr``, ... (`rtl.verilog`), which SoC tools and
cocotbext-axi group by prefix. Signatures are seen from the manager (the source of a stream): the
manager has the port as ``Out``, the subordinate as ``In``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from amaranth.hdl import Module, Signal
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import Flow, In, Member, Out

__all__ = [
    "AddressChannel",
    "Axi4",
    "Axi4Lite",
    "Axi4Read",
    "Axi4Write",
    "AxiStream",
    "BusSignature",
    "Response",
    "drive_attributes",
    "join_ports",
    "read_addresses",
    "write_addresses",
]

_INCR = 1
_BUFFERABLE = 0b0011  # normal memory, non-cacheable: interconnects may widen and split bursts


class Response(enum.Enum, shape=2):  # type: ignore[call-arg]  # what Amaranth adds to enum
    """Values of RRESP and BRESP."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


class BusSignature(wiring.Signature):
    """A port with standard names in Verilog: ``_`` joins the names of port and member."""


class Axi4Read(BusSignature):
    """Read half of AXI4: address and data channel.

    Parameters
    ----------
    address_bits : width of an address, 12..64
    data_bits : width of a data word, a power of two, 8..1024
    id_bits : width of transaction identifiers, 1..32

    Raises
    ------
    TypeError, ValueError
        For a parameter that is no integer, or outside its range.
    """

    def __init__(self, address_bits: int, data_bits: int, id_bits: int = 1) -> None:
        super().__init__(_read_members(address_bits, data_bits, id_bits))


class Axi4Write(BusSignature):
    """Write half of AXI4: address, data and response channel. Parameters are `Axi4Read`'s."""

    def __init__(self, address_bits: int, data_bits: int, id_bits: int = 1) -> None:
        super().__init__(_write_members(address_bits, data_bits, id_bits))


class Axi4(BusSignature):
    """AXI4 with both halves. Parameters are `Axi4Read`'s."""

    def __init__(self, address_bits: int, data_bits: int, id_bits: int = 1) -> None:
        super().__init__(
            _write_members(address_bits, data_bits, id_bits)
            | _read_members(address_bits, data_bits, id_bits)
        )


class Axi4Lite(BusSignature):
    """AXI4-Lite.

    Parameters
    ----------
    address_bits : width of an address, 1..64
    data_bits : width of a register, 32 or 64

    Raises
    ------
    TypeError, ValueError
        For a parameter that is no integer, or outside its range.
    """

    def __init__(self, address_bits: int, data_bits: int = 32) -> None:
        _check("address_bits", address_bits, 1, 64)
        _check("data_bits", data_bits, 32, 64)
        if data_bits not in (32, 64):
            raise ValueError(f"data_bits: {data_bits} is not allowed; must be 32 or 64")
        address = {"addr": Out(address_bits), "prot": Out(3)}
        super().__init__(
            _channel("aw", Out, address)
            | _channel("w", Out, {"data": Out(data_bits), "strb": Out(data_bits // 8)})
            | _channel("b", In, {"resp": In(Response)})
            | _channel("ar", Out, address)
            | _channel("r", In, {"data": In(data_bits), "resp": In(Response)})
        )


class AxiStream(BusSignature):
    """AXI4-Stream without null bytes: every byte of every beat counts.

    Parameters
    ----------
    data_bits : width of TDATA, a multiple of 8, at least 8
    user_bits : width of TUSER; 0 for a port without TUSER

    Raises
    ------
    TypeError, ValueError
        For a parameter that is no integer, or outside its range.
    """

    def __init__(self, data_bits: int, user_bits: int = 0) -> None:
        _check("data_bits", data_bits, 8, 1 << 16)
        _check("user_bits", user_bits, 0, 1 << 16)
        if data_bits % 8:
            raise ValueError(f"data_bits: {data_bits} is not allowed; must be a multiple of 8")
        payload = {"data": Out(data_bits), "last": Out(1)}
        if user_bits:
            payload["user"] = Out(user_bits)
        super().__init__(_channel("t", Out, payload))


class AddressChannel(NamedTuple):
    """An address channel of an AXI4 port, with the data signal of its data channel."""

    valid: Signal
    ready: Signal
    addr: Signal
    len: Signal
    id: Signal
    size: Signal
    burst: Signal
    lock: Signal
    cache: Signal
    prot: Signal
    qos: Signal
    data: Signal


def read_addresses(bus: Any) -> AddressChannel:
    """Return channel AR of an `Axi4Read` port."""
    handshake = bus.arvalid, bus.arready
    attributes = bus.arsize, bus.arburst, bus.arlock, bus.arcache, bus.arprot, bus.arqos
    return AddressChannel(*handshake, bus.araddr, bus.arlen, bus.arid, *attributes, bus.rdata)


def write_addresses(bus: Any) -> AddressChannel:
    """Return channel AW of an `Axi4Write` port."""
    handshake = bus.awvalid, bus.awready
    attributes = bus.awsize, bus.awburst, bus.awlock, bus.awcache, bus.awprot, bus.awqos
    return AddressChannel(*handshake, bus.awaddr, bus.awlen, bus.awid, *attributes, bus.wdata)


def drive_attributes(m: Module, channel: AddressChannel) -> None:
    """Drive the constant signals of an address channel: ID 0, whole words, INCR, bufferable."""
    m.d.comb += [
        channel.id.eq(0),
        channel.size.eq((len(channel.data) // 8).bit_length() - 1),
        channel.burst.eq(_INCR),
        channel.lock.eq(0),
        channel.cache.eq(_BUFFERABLE),
        channel.prot.eq(0),
        channel.qos.eq(0),
    ]


def join_ports(m: Module, bus: Any, *parts: Any) -> None:
    """Join several blocks' ports, each with some of the members, to one outer port.

    Parameters
    ----------
    bus : the outer port, as its component sees it
    parts : ports of submodules, such as an `Axi4Read` and an `Axi4Write`
    """
    whole = {path: outer for path, _, outer in bus.signature.flatten(bus)}
    for part in parts:
        for path, member, inner in part.signature.flatten(part):
            outer = whole[path]
            m.d.comb += outer.eq(inner) if member.flow is Flow.Out else inner.eq(outer)


def _read_members(address_bits: int, data_bits: int, id_bits: int) -> dict[str, Member]:
    address = _address(address_bits, data_bits, id_bits)
    data = {"id": In(id_bits), "data": In(data_bits), "resp": In(Response), "last": In(1)}
    return _channel("ar", Out, address) | _channel("r", In, data)


def _write_members(address_bits: int, data_bits: int, id_bits: int) -> dict[str, Member]:
    address = _address(address_bits, data_bits, id_bits)
    data = {"data": Out(data_bits), "strb": Out(data_bits // 8), "last": Out(1)}
    return (
        _channel("aw", Out, address)
        | _channel("w", Out, data)
        | _channel("b", In, {"id": In(id_bits), "resp": In(Response)})
    )


def _address(address_bits: int, data_bits: int, id_bits: int) -> dict[str, Member]:
    """Return the payload of an address channel."""
    _check("address_bits", address_bits, 12, 64)
    _check("data_bits", data_bits, 8, 1024)
    _check("id_bits", id_bits, 1, 32)
    if data_bits & (data_bits - 1):
        raise ValueError(f"data_bits: {data_bits} is not allowed; must be a power of two")
    widths = {
        "id": id_bits,
        "addr": address_bits,
        "len": 8,
        "size": 3,
        "burst": 2,
        "lock": 1,
        "cache": 4,
        "prot": 3,
        "qos": 4,
    }
    return {name: Out(width) for name, width in widths.items()}


def _channel(prefix: str, flow: Flow, payload: dict[str, Member]) -> dict[str, Member]:
    """Return a channel whose payload and valid flow one way, and whose ready flows the other."""
    members = {"valid": flow(1), "ready": flow.flip()(1), **payload}
    return {f"{prefix}{name}": member for name, member in members.items()}


def _check(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int:
        raise TypeError(f"{name}: {value!r} is not an integer")
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} is not allowed; must be {low}..{high}")
