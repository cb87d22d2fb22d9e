"""Record writer: writes records, which come byte by byte, to their places in the KV memory."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Member, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.axi import Axi4Write, Response, write_addresses
from rtl.burst_splitter import BurstSplitter, request_layout
from rtl.bus_master import BusMaster, ports_of_errors
from rtl.layouts import byte_layout
from rtl.memory_layouts import largest_record_bytes, place_layout
from rtl.record_bytes import RecordBytes
from rtl.streams import Queue

__all__ = ["RecordWriter", "WritePort"]

_BURSTS = 8  # bursts under way at once: the records of two jobs

#: Tag of a burst under way: it is the last burst of its record, and the record is a value.
_BURST_TAG = data.StructLayout({"last": 1, "value": 1})


def _record_streams(config: EngineConfig) -> dict[str, Member]:
    """Return the streams of one side: the places of its records, and their bytes."""
    return {
        "places": In(stream.Signature(place_layout(config))),
        "bytes": In(stream.Signature(byte_layout())),
    }


def _word_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a word with a strobe per byte."""
    return data.StructLayout({"data": config.memory_bits, "strobes": config.memory_bits // 8})


class WritePort(wiring.Signature):
    """Port for the records written of one side, keys or values; directions are the writer's.

    Attributes
    ----------
    places : stream In, `place_layout`, one per record; taken with the record's last byte
    bytes : stream In, `byte_layout`
    written : Out, pulse: a record is in memory
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__({**_record_streams(config), "written": Out(1)})


class RecordWriter(wiring.Component):
    """Write master of the KV memory.

    Records are taken one at a time, one byte per cycle, keys and values in turn if both have a
    record. The bytes fill whole words with strobes: a record starts at any byte, and its
    neighbours' bytes stay. A complete record is sent as INCR bursts that cross no 4 KiB page, while
    the next record is taken. There is one transaction identifier, and at most 8 bursts are without
    a response.

    Errors are handled as `rtl.bus_master` describes. `cancel` ends the burst that has begun: its
    words go out without strobes, except a word that is already on the bus. Then `cancel` waits for
    responses.

    Attributes
    ----------
    key, value : `WritePort`
    error, cancel, idle : `rtl.bus_master.ports_of_errors`
    m_axi : Out, `Axi4Write`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "key": Out(WritePort(config)),
                "value": Out(WritePort(config)),
                **ports_of_errors(),
                "m_axi": Out(Axi4Write(config.address_bits, config.memory_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, axi = self._config, self.m_axi
        filler = _WordFiller(config)
        splitter = BurstSplitter(config, filler.most_words)
        words = Queue(_word_layout(config), filler.most_words, buffered=True)
        master = BusMaster(m, self, write_addresses(axi), _BURST_TAG, _BURSTS)
        master.add(filler=filler, splitter=splitter, words=words)
        under_way, stopped = master.under_way, master.stopped
        for port, inner in ((self.key, filler.key), (self.value, filler.value)):
            connect(m, flipped(port.places), inner.places)
            connect(m, flipped(port.bytes), inner.bytes)
        connect(m, filler.requests, splitter.requests)
        connect(m, filler.words, words.i)

        # --- words to bursts ----------------------------------------------------------------------
        burst = splitter.bursts.payload
        request_value = Signal()  # the request in the splitter is for a value
        sending = Signal()  # some words of a burst are not on the bus yet
        left = Signal(8)
        begin, load = Signal(), Signal()
        with m.If(splitter.requests.valid & splitter.requests.ready):
            m.d.sync += request_value.eq(filler.of_value)
        m.d.comb += [
            begin.eq(splitter.bursts.valid & master.free & ~sending),
            splitter.bursts.ready.eq(begin),
            under_way.i.payload.last.eq(burst.last),
            under_way.i.payload.value.eq(request_value),
            load.eq(sending & words.o.valid & (~axi.wvalid | axi.wready)),
            words.o.ready.eq(load),
        ]
        master.ask(begin, burst)
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)
        with m.If(begin):
            m.d.sync += [sending.eq(1), left.eq(burst.length)]
        with m.If(load):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(words.o.payload.data),
                axi.wstrb.eq(Mux(stopped, 0, words.o.payload.strobes)),
                axi.wlast.eq(left == 0),
                left.eq(left - 1),
                sending.eq(left != 0),
            ]

        # --- responses ----------------------------------------------------------------------------
        answered = under_way.o.payload
        comes = axi.bvalid & under_way.o.valid
        written = comes & (axi.bresp == Response.OKAY) & answered.last & ~stopped
        m.d.comb += [
            axi.bready.eq(1),
            under_way.o.ready.eq(comes),
            self.key.written.eq(written & ~answered.value),
            self.value.written.eq(written & answered.value),
        ]
        with m.If(comes & (axi.bresp != Response.OKAY) & ~stopped):
            m.d.sync += self.error.eq(axi.bresp)
        master.end(offers=axi.awvalid | axi.wvalid | sending, answered=axi.bvalid)
        return m


class _WordFiller(wiring.Component):
    """Fill words with record bytes and strobes; send a request when a record is complete."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        word = config.memory_bits // 8
        self.most_words = (word - 1 + largest_record_bytes(config) - 1) // word + 1
        super().__init__(
            {
                "key": Out(wiring.Signature(_record_streams(config))),
                "value": Out(wiring.Signature(_record_streams(config))),
                "words": Out(stream.Signature(_word_layout(config))),
                "requests": Out(stream.Signature(request_layout(config, self.most_words))),
                "of_value": Out(1),  # the record is a value
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        word = config.memory_bits // 8
        m.submodules.skip = skip = RecordBytes(config, config.max_context)

        # --- the record at hand: of keys or of values ---------------------------------------------
        value = self.of_value
        # a path may offer a place long before its bytes: a side is served when it offers both
        has_key = self.key.places.valid & self.key.bytes.valid
        has_value = self.value.places.valid & self.value.bytes.valid
        place, byte = Signal(place_layout(config)), Signal(byte_layout())
        valid, take, taken_last = Signal(), Signal(), Signal()
        for chosen, port in ((~value, self.key), (value, self.value)):
            with m.If(chosen):
                m.d.comb += [
                    place.eq(port.places.payload),
                    byte.eq(port.bytes.payload),
                    valid.eq(port.bytes.valid),
                    port.bytes.ready.eq(take),
                    port.places.ready.eq(taken_last),
                ]

        # --- its bytes to words -------------------------------------------------------------------
        address = Signal(config.address_bits)
        index = Signal(range(word))  # of the next byte within its word
        word_bytes = Array(Signal(8, name=f"byte_{i}", reset_less=True) for i in range(word))
        strobes = Signal(word)
        full = Signal()  # the word is complete
        filled = Signal(range(self.most_words + 1))  # words of this record so far
        m.d.comb += [
            skip.planes.eq(place.planes),
            skip.residual.eq(place.residual),
            skip.count.eq(place.slot),
            address.eq(place.base + skip.bytes),
            self.words.valid.eq(full),
            self.words.payload.eq(Cat(word_bytes, strobes)),
            self.requests.payload.words.eq(filled),
        ]
        free = ~full | self.words.ready
        with m.If(full & self.words.ready):
            m.d.sync += [full.eq(0), strobes.eq(0), filled.eq(filled + 1)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [value.eq(has_value & (~has_key | ~value)), filled.eq(0)]
                with m.If(has_key | has_value):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += skip.start.eq(1)
                m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.sync += [self.requests.payload.address.eq(address), index.eq(address)]
                with m.If(skip.done):
                    m.next = "BYTES"
            with m.State("BYTES"):
                m.d.comb += [take.eq(free), taken_last.eq(free & valid & byte.last)]
                with m.If(free & valid):
                    m.d.sync += [
                        word_bytes[index].eq(byte.data),
                        strobes.eq(Mux(full, 0, strobes) | (1 << index)),
                        index.eq(index + 1),
                        full.eq(byte.last | (index == word - 1)),
                    ]
                with m.If(taken_last):
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += self.requests.valid.eq(~full)
                with m.If(self.requests.valid & self.requests.ready):
                    m.next = "IDLE"
        return m
