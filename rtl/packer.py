"""Packer: encodes the trits of a plane in bytes, in the formats of docs/contract.md."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import C, Cat, Module, Mux, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, Packing
from rtl.layouts import packed_plane_layout, plane_layout
from rtl.pipeline import Pipeline

__all__ = ["Packer", "encode_byte"]


class Packer(wiring.Component):
    """Encode one plane of D trits per transfer; the inverse of the unpacker.

    Where several bytes decode to the same trits, the smallest byte is taken. The last byte is
    filled with zeros.

    Throughput one plane per cycle, latency `LATENCY` cycles.

    Attributes
    ----------
    i : stream In, `plane_layout`
    o : stream Out, `packed_plane_layout`
    """

    LATENCY = 1

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(plane_layout(config))),
                "o": Out(stream.Signature(packed_plane_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        packing = self._config.packing
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)
        group = DIGITS_PER_BYTE[packing]
        trits = [self.i.payload.trits[d] for d in range(self._config.head_dim)]
        starts = range(0, len(trits), group)
        codes = [encode_byte(packing, trits[start : start + group]) for start in starts]
        stage = pipe.stage(bytes=Cat(codes))
        pipe.finish(bytes=stage.bytes)
        return m


Flags = tuple[Value, Value]
"""A trit as (positive, negative): also the two bits of the digits 0, 1, 2."""


def encode_byte(packing: Packing, trits: Sequence[data.View]) -> Value:
    """Return the byte of a group of trits, with zeros for missing trits."""
    flags = [(t.nonzero & ~t.negative, t.nonzero & t.negative) for t in trits]
    flags += [(C(0, 1), C(0, 1))] * (DIGITS_PER_BYTE[packing] - len(flags))
    return {"5in8": _encode_5in8, "2bit": _encode_2bit}[packing](flags)


def _encode_5in8(group: list[Flags]) -> Value:
    """Return the byte of five trits."""
    (p0, n0), (p1, n1), (p2, n2), (p3, n3), (p4, n4) = group
    t0 = Cat(p0, n0)
    c = Mux(
        n2,
        Mux(n1, Cat(t0, C(0b011, 3)), Cat(C(0b11, 2), t0, p1)),
        Cat(t0, p1, n1, p2),
    )
    return Mux(
        n4,
        Mux(n3, Cat(c[0:2], C(0b111, 3), c[2:5]), Cat(c, C(0b11, 2), p3)),
        Cat(c, p3, n3, p4),
    )


def _encode_2bit(group: list[Flags]) -> Value:
    """Return the byte of four trits."""
    return Cat(Cat(positive | negative, negative) for positive, negative in group)
