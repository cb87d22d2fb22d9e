"""Leaving fetcher: requests and decodes the records of a token that leaves the window."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, plane_bytes, scale_bytes, vector_bytes
from rtl.burst_splitter import request_layout
from rtl.layouts import coded_plane_layout
from rtl.memory_layouts import fetch_layout, word_layout
from rtl.record_bytes import RecordBytes
from rtl.streams import Queue
from rtl.unpacker import decode_byte

__all__ = ["LeavingFetcher"]


class LeavingFetcher(wiring.Component):
    """Request a key and a value record, decode them byte by byte, and send their planes whole.

    One fetch is served at a time. A buffer has room for both records, so that words are always
    taken. A record is decoded at one byte per cycle: requantization takes the planes no faster.

    Attributes
    ----------
    fetches : stream In, `fetch_layout`; a fetch is taken when all its planes have been taken
    appended : In, the records of `fetches` may be read
    requests : stream Out, `request_layout` of at most `most_words`
    last_request : Out, the request taken last was that for the value
    words : stream In, `word_layout`; always ready
    keys, values : stream Out, `coded_plane_layout`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        word = config.memory_bits // 8
        size = vector_bytes(config, config.max_planes, 1)
        self.most_words = (word - 1 + size - 1) // word + 1
        planes = stream.Signature(coded_plane_layout(config))
        super().__init__(
            {
                "fetches": In(stream.Signature(fetch_layout(config))),
                "appended": In(1),
                "requests": Out(stream.Signature(request_layout(config, self.most_words))),
                "last_request": Out(1),
                "words": In(stream.Signature(word_layout(config))),
                "keys": Out(planes),
                "values": Out(planes),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        word = config.memory_bits // 8
        fetch = self.fetches.payload
        m.submodules.queue = queue = Queue(word_layout(config), 2 * self.most_words, buffered=True)
        m.submodules.skip = skip = RecordBytes(config, config.max_context)
        m.submodules.record_size = size = RecordBytes(config, 1)
        m.d.comb += [
            queue.i.payload.eq(self.words.payload),
            queue.i.valid.eq(self.words.valid),
            self.words.ready.eq(1),
            skip.planes.eq(fetch.digits),
            skip.count.eq(fetch.slot),
            size.planes.eq(fetch.digits),
            size.count.eq(1),
        ]

        # --- where the records are: key first -----------------------------------------------------
        value = Signal()
        address = Signal(config.address_bits)
        request = self.requests.payload
        offset = address[: word.bit_length() - 1]
        m.d.comb += [
            address.eq(Mux(value, fetch.value_window, fetch.key_window) + skip.bytes),
            request.address.eq(address),
            request.words.eq(((offset + size.bytes - 1) >> (word.bit_length() - 1)) + 1),
        ]

        # --- one byte per cycle -------------------------------------------------------------------
        group = DIGITS_PER_BYTE[config.packing]
        of_plane, of_scale = plane_bytes(config.packing, config.head_dim), scale_bytes(config)
        place = Signal(range(word))
        left = Signal(range(max(of_plane, of_scale)))  # bytes to come of the scale, or of the plane
        in_scale = Signal()
        plane = Signal(range(config.max_planes))
        scale = Signal(8 * of_scale, reset_less=True)
        trits = Signal(2 * group * of_plane, reset_less=True)
        data = queue.o.payload.data
        byte = Array(data[start : start + 8] for start in range(0, 8 * word, 8))[place]
        last_plane = plane == fetch.digits - 1
        scale_bits = config.scale_fraction_bits
        for port in (self.keys, self.values):
            m.d.comb += [
                port.payload.trits.eq(trits),
                port.payload.fraction.eq(scale[:scale_bits]),
                port.payload.exponent.eq(scale[scale_bits : config.scale_bits]),
                port.payload.unit.eq(Mux(value, plane == 0, last_plane)),
                port.payload.last.eq(last_plane),
            ]
        taken = Mux(value, self.values.ready, self.keys.ready)

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += value.eq(0)
                with m.If(self.fetches.valid & self.appended):
                    m.d.comb += [skip.start.eq(1), size.start.eq(1)]
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += self.requests.valid.eq(skip.done & size.done)
                with m.If(self.requests.valid & self.requests.ready):
                    m.d.sync += [value.eq(~value), self.last_request.eq(value)]
                    with m.If(value):
                        m.next = "RECORD"
            with m.State("RECORD"):
                m.d.sync += [
                    place.eq(offset),
                    left.eq(of_scale - 1),
                    in_scale.eq(1),
                    plane.eq(0),
                ]
                m.next = "BYTES"
            with m.State("BYTES"):
                with m.If(queue.o.valid):
                    m.d.sync += [place.eq(place + 1), left.eq(left - 1)]
                    m.d.comb += queue.o.ready.eq(place == word - 1)
                    with m.If(in_scale):
                        m.d.sync += scale.eq(Cat(scale, byte)[8:])
                    with m.Else():
                        m.d.sync += trits.eq(Cat(trits, *decode_byte(config, byte))[2 * group :])
                    with m.If(left == 0):
                        m.d.sync += [in_scale.eq(0), left.eq(of_plane - 1)]
                        with m.If(~in_scale):
                            m.next = "PLANE"
            with m.State("PLANE"):
                m.d.comb += [self.keys.valid.eq(~value), self.values.valid.eq(value)]
                with m.If(taken):
                    m.d.sync += plane.eq(plane + 1)
                    m.next = "BYTES"
                    with m.If(last_plane):
                        # drop bytes behind the record
                        m.d.comb += queue.o.ready.eq(place != 0)
                        m.d.sync += value.eq(~value)
                        m.next = "RECORD"
                        with m.If(value):
                            m.d.comb += self.fetches.ready.eq(1)
                            m.next = "IDLE"
        return m
