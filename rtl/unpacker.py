"""Unpacker: decodes the bytes of a packed plane to trits, in the formats of docs/contract.md."""

from __future__ import annotations

from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import packed_plane_layout, plane_layout
from rtl.pipeline import Pipeline

__all__ = ["Unpacker", "decode_byte", "decode_plane"]


class Unpacker(wiring.Component):
    """Decode one plane of D trits per transfer.

    "5in8" is the trit block of ASTC's integer sequence encoding (Khronos Data Format
    Specification): about twenty gates per byte. Every byte decodes. "2bit" takes one gate per trit.

    Throughput one plane per cycle, latency `LATENCY` cycles.

    Attributes
    ----------
    i : stream In, `packed_plane_layout`
    o : stream Out, `plane_layout`
    """

    LATENCY = 1

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(packed_plane_layout(config))),
                "o": Out(stream.Signature(plane_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)
        stage = pipe.stage(trits=decode_plane(self._config, self.i.payload.bytes))
        pipe.finish(trits=stage.trits)
        return m


def decode_plane(config: EngineConfig, data: Iterable[Value]) -> Value:
    """Return the D trits, two bits each, of a plane's bytes, combinationally."""
    trits = [trit for byte in data for trit in decode_byte(config, byte)]
    return Cat(trits[: config.head_dim])


def decode_byte(config: EngineConfig, byte: Value) -> list[Value]:
    """Return the trits, two bits each, of a byte, combinationally."""
    return {"5in8": _decode_5in8, "2bit": _decode_2bit}[config.packing](byte)


def _decode_5in8(byte: Value) -> list[Value]:
    """Return five trits (nonzero, negative) of a byte; digits 0, 1, 2 stand for 0, +1, -1."""
    # where t4 = t3 = 2, the byte's bits 4..2 are ones, and bits 7..5 hold the bits they displace
    both = byte[2:5].all()
    c = Mux(both, Cat(byte[0:2], byte[5:8]), byte[0:5])
    upper = byte[5:7].all()
    t4_high = both | upper  # t4 = 2
    t4_low = ~t4_high & byte[7]
    t3_high = both | (~upper & byte[6])
    t3_low = ~both & Mux(upper, byte[7], byte[5] & ~byte[6])

    low_full = c[0:2].all()  # t2 = 2, t1 in bit 4, t0 in bits 3..2
    high_full = ~low_full & c[2:4].all()  # t2 = t1 = 2, t0 in bits 1..0
    t2_high = low_full | high_full
    t2_low = ~t2_high & c[4]
    t1_high = ~low_full & c[3]
    t1_low = Mux(low_full, c[4], c[2] & ~c[3])
    t0_high = Mux(low_full, c[3], c[1])
    t0_low = Mux(low_full, c[2] & ~c[3], c[0] & ~c[1])
    lows = (t0_low, t1_low, t2_low, t3_low, t4_low)
    highs = (t0_high, t1_high, t2_high, t3_high, t4_high)
    return [Cat(low | high, high) for low, high in zip(lows, highs, strict=True)]


def _decode_2bit(byte: Value) -> list[Value]:
    """Return four trits of a byte; 0b10 becomes the other zero."""
    return [Cat(byte[index], byte[index] & byte[index + 1]) for index in (0, 2, 4, 6)]
