"""Record writer: puts records, byte by byte, where they belong in the KV memory."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.axi import Axi4Write, Response, drive_attributes
from rtl.burst_splitter import BurstSplitter, request_layout
from rtl.layouts import byte_layout
from rtl.memory_layouts import largest_record_bytes, place_layout
from rtl.record_bytes import RecordBytes

__all__ = ["RecordWriter"]

_BURSTS = 8  # under way at once: the records of two jobs
_PATIENCE = 1 << 16  # cycles without a response after which a burst is given up, while draining


class RecordWriter(wiring.Component):
    """Write master of the KV memory.

    Takes one record at a time, keys and values in turn where both have one, one byte a cycle, into
    whole words with strobes: a record starts at any byte, and its neighbours' bytes stay. A record
    is sent when it is complete, as INCR bursts that cross no 4 KiB page; the next one is taken
    meanwhile. One transaction identifier, at most 8 bursts without a response.

    What the bus reports ends everything: `error` is set and no burst begins any more. `cancel` then
    ends the burst that has begun, its words without strobes but for one that is on the bus already,
    waits for responses, and forgets everything else. Bursts are given up when
    65536 cycles brought no response, counted from when the last address and word were taken.

    Attributes
    ----------
    key_places, value_places : stream In, `place_layout`, one a record; taken with its last byte
    key_bytes, value_bytes : stream In, `byte_layout`
    keys_written, values_written : Out, pulse: a record is in memory
    error : Out, `Response` of the first burst that was not OKAY
    cancel : In, hold until `idle`
    idle : Out, `cancel` has done its work
    m_axi : Out, `Axi4Write`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        places = stream.Signature(place_layout(config))
        record_bytes = stream.Signature(byte_layout())
        super().__init__(
            {
                "key_places": In(places),
                "value_places": In(places),
                "key_bytes": In(record_bytes),
                "value_bytes": In(record_bytes),
                "keys_written": Out(1),
                "values_written": Out(1),
                "error": Out(Response),
                "cancel": In(1),
                "idle": Out(1),
                "m_axi": Out(Axi4Write(config.address_bits, config.memory_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        word = config.memory_bits // 8
        filler = _WordFiller(config)
        splitter = BurstSplitter(config, filler.most_words)
        words = SyncFIFOBuffered(width=9 * word, depth=filler.most_words)
        tags = SyncFIFO(width=2, depth=_BURSTS)
        forget = ResetInserter(self.idle)
        m.submodules.filler = forget(filler)
        m.submodules.splitter = forget(splitter)
        m.submodules.words = forget(words)
        m.submodules.tags = forget(tags)
        stopped = Signal()
        m.d.comb += stopped.eq((self.error != Response.OKAY) | self.cancel)

        for name in ("key_places", "value_places", "key_bytes", "value_bytes"):
            connect(m, flipped(getattr(self, name)), getattr(filler, name))
        connect(m, filler.requests, splitter.requests)
        m.d.comb += [
            words.w_data.eq(filler.words.payload),
            words.w_en.eq(filler.words.valid),
            filler.words.ready.eq(words.w_rdy),
        ]

        # --- words to bursts ----------------------------------------------------------------------
        axi = self.m_axi
        drive_attributes(m, axi, "aw")
        burst = splitter.bursts.payload
        request_value = Signal()  # of the request that is in the splitter
        sending = Signal()  # a burst's words are not all on the bus
        left = Signal(8)
        begin, load = Signal(), Signal()
        with m.If(splitter.requests.valid & splitter.requests.ready):
            m.d.sync += request_value.eq(filler.value)
        m.d.comb += [
            begin.eq(
                splitter.bursts.valid
                & ~stopped
                & ~sending
                & (~axi.awvalid | axi.awready)
                & tags.w_rdy
            ),
            splitter.bursts.ready.eq(begin),
            tags.w_en.eq(begin),
            tags.w_data.eq(Cat(burst.last, request_value)),
            load.eq(sending & words.r_rdy & (~axi.wvalid | axi.wready)),
            words.r_en.eq(load),
        ]
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)
        with m.If(begin):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(burst.address),
                axi.awlen.eq(burst.length),
                sending.eq(1),
                left.eq(burst.length),
            ]
        with m.If(load):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(words.r_data),
                axi.wstrb.eq(Mux(stopped, 0, words.r_data[8 * word :])),
                axi.wlast.eq(left == 0),
                left.eq(left - 1),
                sending.eq(left != 0),
            ]

        # --- responses ----------------------------------------------------------------------------
        last, of_value = tags.r_data[0], tags.r_data[1]
        comes = axi.bvalid & tags.r_rdy
        written = comes & (axi.bresp == Response.OKAY) & last & ~stopped
        m.d.comb += [
            axi.bready.eq(1),
            tags.r_en.eq(comes),
            self.keys_written.eq(written & ~of_value),
            self.values_written.eq(written & of_value),
        ]
        with m.If(comes & (axi.bresp != Response.OKAY) & ~stopped):
            m.d.sync += self.error.eq(axi.bresp)

        # --- the end of an error ------------------------------------------------------------------
        quiet = Signal(range(_PATIENCE))
        asking = axi.awvalid | axi.wvalid | sending
        m.d.sync += quiet.eq(Mux(axi.bvalid | asking | ~self.cancel, 0, quiet + 1))
        m.d.comb += self.idle.eq(self.cancel & ~asking & (~tags.r_rdy | (quiet == _PATIENCE - 1)))
        with m.If(self.idle):
            m.d.sync += self.error.eq(Response.OKAY)
        return m


class _WordFiller(wiring.Component):
    """Bytes of records to words with strobes, and a request when a record's words are complete."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        word = config.memory_bits // 8
        self.most_words = (word - 1 + largest_record_bytes(config) - 1) // word + 1
        places = stream.Signature(place_layout(config))
        record_bytes = stream.Signature(byte_layout())
        super().__init__(
            {
                "key_places": In(places),
                "value_places": In(places),
                "key_bytes": In(record_bytes),
                "value_bytes": In(record_bytes),
                "words": Out(stream.Signature(9 * word)),
                "requests": Out(stream.Signature(request_layout(config, self.most_words))),
                "value": Out(1),  # whose record it is
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        word = config.memory_bits // 8
        m.submodules.skip = skip = RecordBytes(config, config.max_context)

        # --- the record at hand: of keys or of values ---------------------------------------------
        value = self.value
        # a path may offer a place long before its bytes: who has both is served
        has_key = self.key_places.valid & self.key_bytes.valid
        has_value = self.value_places.valid & self.value_bytes.valid
        place, byte = Signal(place_layout(config)), Signal(byte_layout())
        valid, take, taken_last = Signal(), Signal(), Signal()
        for chosen, places, record_bytes in (
            (~value, self.key_places, self.key_bytes),
            (value, self.value_places, self.value_bytes),
        ):
            with m.If(chosen):
                m.d.comb += [
                    place.eq(places.payload),
                    byte.eq(record_bytes.payload),
                    valid.eq(record_bytes.valid),
                    record_bytes.ready.eq(take),
                    places.ready.eq(taken_last),
                ]

        # --- its bytes to words -------------------------------------------------------------------
        address = Signal(config.address_bits)
        index = Signal(range(word))  # of the next byte within its word
        data = Array(Signal(8, name=f"byte_{i}", reset_less=True) for i in range(word))
        strobes = Signal(word)
        full = Signal()  # the word is complete
        filled = Signal(range(self.most_words + 1))  # words of this record so far
        m.d.comb += [
            skip.planes.eq(place.planes),
            skip.residual.eq(place.residual),
            skip.count.eq(place.slot),
            address.eq(place.base + skip.bytes),
            self.words.valid.eq(full),
            self.words.payload.eq(Cat(data, strobes)),
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
                        data[index].eq(byte.data),
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
