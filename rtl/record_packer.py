"""Record packer: turns the digits of a vector, element by element, into the bytes of its record."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, plane_bytes, scale_bytes
from rtl.elements import Trit
from rtl.layouts import byte_layout, coded_element_layout
from rtl.packer import encode_byte

__all__ = ["RecordPacker"]


class RecordPacker(wiring.Component):
    """Pack digits into records of bytes (docs/contract.md, "Memory"): per run, scale and planes.

    The digits of the elements that share a byte are collected. One encoder then encodes them plane
    after plane, one byte per cycle, into a memory with a place for each plane: the address decides
    the order of the planes. When all bytes are in, the record is read out. The next vector's first
    bytes wait until the record is out.

    The first byte of a record of N planes comes `latency(N)` cycles after its last digits, that of
    a residual code `latency(1)` cycles; the other bytes follow, one per cycle. Elements are taken
    one per cycle if a byte holds at least as many elements as a run has planes, else at the pace of
    the encoder.

    Attributes
    ----------
    i : stream In, `coded_element_layout`, D transfers per run
    o : stream Out, `byte_layout`, one transfer per byte
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(coded_element_layout(config))),
                "o": Out(stream.Signature(byte_layout())),
            }
        )

    @staticmethod
    def latency(planes: int) -> int:
        """Return the cycles from the last digits of a vector to the first byte of its record.

        One cycle to collect, one to encode each plane of the last run, one to begin.
        """
        return planes + 2

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config, digits = self._config, self.i.payload
        group = DIGITS_PER_BYTE[config.packing]
        length = plane_bytes(config.packing, config.head_dim)
        planes = config.max_planes
        sending = Signal()

        # --- collect: the digits of a byte's elements; all but the last wait in `slots` -----------
        element = Signal(range(config.head_dim))
        place = Signal(range(group))  # of the element in its byte
        byte = Signal(range(length))
        run = Signal(range(planes))
        slots = [
            Signal(digits.trits.shape(), name=f"slot_{n}", reset_less=True)
            for n in range(group - 1)
        ]
        last_element, completes, last_run = Signal(), Signal(), Signal()
        taken, handed, encoding, encodes, ends = (Signal() for _ in range(5))
        m.d.comb += [
            last_element.eq(element == config.head_dim - 1),
            completes.eq(last_element | (place == group - 1)),
            last_run.eq(~digits.residual | (run == digits.planes - 1)),
            self.i.ready.eq(~completes | ~encoding | ends),
            taken.eq(self.i.valid & self.i.ready),
            handed.eq(taken & completes),
        ]
        with m.If(taken):
            m.d.sync += [element.eq(element + 1), place.eq(place + 1)]
            for n, slot in enumerate(slots):
                with m.If(place == n):
                    m.d.sync += slot.eq(digits.trits)
            with m.If(completes):
                m.d.sync += [place.eq(0), byte.eq(byte + 1)]
            with m.If(last_element):
                m.d.sync += [element.eq(0), byte.eq(0), run.eq(Mux(last_run, 0, run + 1))]

        # --- encode: one plane's byte per cycle, to its place in the record -----------------------
        held = [
            Signal(digits.trits.shape(), name=f"held_{n}", reset_less=True) for n in range(group)
        ]
        vector = Signal(digits.shape(), reset_less=True)  # the payload that came with the digits
        held_byte, held_run = Signal.like(byte, reset_less=True), Signal.like(run, reset_less=True)
        final = Signal(reset_less=True)
        with m.If(handed):
            for n, trits in enumerate(held):
                earlier = slots[n] if n < group - 1 else 0
                m.d.sync += trits.eq(
                    Mux(place == n, digits.trits.as_value(), Mux(place > n, earlier, 0))
                )
            m.d.sync += [
                vector.eq(digits),
                held_byte.eq(byte),
                held_run.eq(run),
                final.eq(last_element & last_run),
            ]
        plane = Signal(range(planes))
        position = Signal(range(planes))  # of the plane in the record
        with m.If(vector.residual):
            m.d.comb += position.eq(held_run)
        with m.Elif(vector.unit_first):
            m.d.comb += position.eq(plane)
        with m.Else():
            m.d.comb += position.eq(vector.planes - 1 - plane)

        stride = 1 << len(byte)
        m.submodules.bytes = memory = Memory(shape=8, depth=planes * stride, init=[])
        write, read = memory.write_port(), memory.read_port()
        column = [Signal(Trit, name=f"column_{n}") for n in range(group)]
        for trit, trits in zip(column, held, strict=True):
            m.d.comb += trit.eq(Array(trits[c].as_value() for c in range(planes))[plane])
        m.d.comb += [
            encodes.eq(encoding & ~sending),
            ends.eq(encodes & (vector.residual | (plane == vector.planes - 1))),
            write.en.eq(encodes),
            write.addr.eq(Cat(held_byte, position)),
            write.data.eq(encode_byte(config.packing, column)),
        ]
        scales = Array(
            Signal(8 * scale_bytes(config), name=f"scale_{r}", reset_less=True)
            for r in range(planes)
        )
        with m.If(encodes):
            m.d.sync += [
                plane.eq(Mux(ends, 0, plane + 1)),
                scales[held_run].eq(Cat(vector.fraction, vector.exponent)),
            ]
        with m.If(handed | ends):
            m.d.sync += encoding.eq(handed)

        # --- send: each plane in turn; the scale comes before the plane that opens its run --------
        last_plane, residual = Signal.like(run, reset_less=True), Signal(reset_less=True)
        in_plane = Signal()
        item, item_byte = Signal.like(run), Signal.like(byte)
        scale_byte = Signal(8, reset_less=True)
        from_memory = Signal()
        scale = Signal(8 * scale_bytes(config))
        scale_parts = Array(scale[8 * b :][:8] for b in range(scale_bytes(config)))
        last_byte = item_byte == Mux(in_plane, length - 1, scale_bytes(config) - 1)
        last_item = in_plane & (item == last_plane)
        advance = Signal()
        m.d.comb += [
            advance.eq(~self.o.valid | self.o.ready),
            scale.eq(scales[item]),
            read.addr.eq(Cat(item_byte, item)),
            read.en.eq(advance & sending & in_plane),
            self.o.payload.data.eq(Mux(from_memory, read.data, scale_byte)),
        ]
        with m.If(ends & final):
            m.d.sync += [
                sending.eq(1),
                last_plane.eq(vector.planes - 1),
                residual.eq(vector.residual),
            ]
        with m.If(advance):
            m.d.sync += self.o.valid.eq(sending)
        with m.If(advance & sending):
            m.d.sync += [
                from_memory.eq(in_plane),
                scale_byte.eq(scale_parts[item_byte]),
                self.o.payload.last.eq(last_byte & last_item),
                item_byte.eq(item_byte + 1),
            ]
            with m.If(last_byte):
                m.d.sync += [item_byte.eq(0), in_plane.eq(1)]
                with m.If(in_plane):
                    m.d.sync += [item.eq(item + 1), in_plane.eq(~residual)]
                with m.If(last_item):
                    m.d.sync += [item.eq(0), in_plane.eq(0), sending.eq(0)]
        return m
