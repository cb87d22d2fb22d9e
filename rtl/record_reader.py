"""Record reader: fetches the records of a job's attention, and records that leave the window."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.axi import Axi4Read, Response, read_addresses
from rtl.burst_splitter import BurstSplitter, burst_layout
from rtl.bus_master import BusMaster, ports_of_errors
from rtl.layouts import coded_plane_layout, key_input_layout, value_input_layout
from rtl.leaving_fetcher import LeavingFetcher
from rtl.memory_layouts import (
    APPEND_BITS,
    fetch_layout,
    largest_record_bytes,
    piece_layout,
    read_job_layout,
    word_layout,
)
from rtl.record_unpacker import RecordUnpacker
from rtl.record_walker import RecordWalker
from rtl.streams import Queue, join

__all__ = ["ReadPort", "RecordReader"]

_BURSTS = 16  # bursts under way at once; bursts of short pieces have few beats

#: Tag of a burst under way: beats - 1, whether the burst is part of a fetch, and whether it is the
#: last burst of its job or fetch.
_BURST_TAG = data.StructLayout({"length": 8, "fetch": 1, "end": 1})


class ReadPort(wiring.Signature):
    """Port for the records read of one side, keys or values; directions are the reader's.

    Parameters
    ----------
    slices : layout of the slices that attention takes

    Attributes
    ----------
    slices : stream Out, of that layout
    leaving : stream Out, `coded_plane_layout`: planes of records that leave the window, in the
        order of the record
    appended : In, number of appends that are in memory, modulo ``2**APPEND_BITS``. A job's newest
        records, and a fetch, are requested when `appended` is at most half the range ahead of
        their `appends`.
    """

    def __init__(self, config: EngineConfig, slices: data.StructLayout) -> None:
        super().__init__(
            {
                "slices": Out(stream.Signature(slices)),
                "leaving": Out(stream.Signature(coded_plane_layout(config))),
                "appended": In(APPEND_BITS),
            }
        )


class RecordReader(wiring.Component):
    """Read master of the KV memory.

    Pieces of a job (`rtl.record_walker`) are requested as INCR bursts while there is room for their
    words, `read_ahead` beats in all, so that RREADY is always high; jobs follow one another without
    a pause. Bursts have at most ``read_ahead / 2`` beats and one transaction identifier.

    Records of a token that leaves the window have buffers of their own, and are requested before
    pieces that wait: an append never waits for attention.

    Errors are handled as `rtl.bus_master` describes. An `error` of EXOKAY means that the response
    was EXOKAY, or that RLAST was misplaced.

    Attributes
    ----------
    jobs : stream In, `read_job_layout`; a job is taken when its last piece is on its way
    fetches : stream In, `fetch_layout`; a fetch is taken when its planes have left
    key, value : `ReadPort`, with slices of `key_input_layout` and `value_input_layout`
    job_read : Out, pulse: all words of a job have come, its records may be overwritten
    fetch_read : Out, pulse: the same for a fetch
    fenced : Out, a piece waits for an append
    error, cancel, idle : `rtl.bus_master.ports_of_errors`
    m_axi : Out, `Axi4Read`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "jobs": In(stream.Signature(read_job_layout(config))),
                "fetches": In(stream.Signature(fetch_layout(config))),
                "key": Out(ReadPort(config, key_input_layout(config))),
                "value": Out(ReadPort(config, value_input_layout(config))),
                "job_read": Out(1),
                "fetch_read": Out(1),
                "fenced": Out(1),
                **ports_of_errors(),
                "m_axi": Out(Axi4Read(config.address_bits, config.memory_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config, axi = self._config, self.m_axi
        word = config.memory_bits // 8
        most_words = word + config.block * largest_record_bytes(config) // word
        walker = RecordWalker(config)
        fetcher = LeavingFetcher(config)
        unpacker = RecordUnpacker(config)
        # two bursts under way even if `read_ahead` is small
        splitter = BurstSplitter(config, most_words, config.read_ahead // 2)
        fetch_splitter = BurstSplitter(config, fetcher.most_words)
        pieces = Queue(piece_layout(config), _BURSTS, buffered=False)
        read = Queue(word_layout(config), config.read_ahead, buffered=True)
        master = BusMaster(m, self, read_addresses(axi), _BURST_TAG, _BURSTS)
        master.add(walker=walker, fetcher=fetcher, unpacker=unpacker, splitter=splitter)
        master.add(fetch_splitter=fetch_splitter, pieces=pieces, read=read)
        under_way, stopped = master.under_way, master.stopped

        # --- pieces to requests -------------------------------------------------------------------
        connect(m, flipped(self.jobs), walker.jobs)
        connect(m, flipped(self.fetches), fetcher.fetches)
        connect(m, fetcher.requests, fetch_splitter.requests)

        def appended(counter: Value, needed: Value) -> Value:
            return ~(counter - needed)[APPEND_BITS - 1]

        job, fetch = self.jobs.payload, self.fetches.payload
        placed = walker.pieces.payload
        join(m, [walker.pieces], [splitter.requests, pieces.i])
        m.d.comb += [
            walker.keys_appended.eq(appended(self.key.appended, job.appends)),
            walker.values_appended.eq(appended(self.value.appended, job.appends)),
            fetcher.appended.eq(
                appended(self.key.appended, fetch.appends)
                & appended(self.value.appended, fetch.appends)
            ),
            self.fenced.eq(walker.fenced),
            splitter.requests.payload.address.eq(placed.address),
            splitter.requests.payload.words.eq((placed.piece.last_byte >> _log2(word)) + 1),
            pieces.i.payload.eq(placed.piece),
        ]
        job_end = Signal()  # the request in the splitter is its job's last
        with m.If(splitter.requests.valid & splitter.requests.ready):
            m.d.sync += job_end.eq(placed.job_end)

        # --- requests to the address channel: fetches first ---------------------------------------
        room = Signal(range(config.read_ahead + 1), init=config.read_ahead)  # for words of jobs
        asked = splitter.bursts.payload
        chosen = Signal(burst_layout(config))
        go_fetch, go = Signal(), Signal()
        tag = under_way.i.payload
        m.d.comb += [
            go_fetch.eq(master.free & fetch_splitter.bursts.valid),
            go.eq(master.free & ~go_fetch & splitter.bursts.valid & (asked.length < room)),
            fetch_splitter.bursts.ready.eq(go_fetch),
            splitter.bursts.ready.eq(go),
            chosen.eq(Mux(go_fetch, fetch_splitter.bursts.payload, asked)),
            tag.length.eq(chosen.length),
            tag.fetch.eq(go_fetch),
            tag.end.eq(chosen.last & Mux(go_fetch, fetcher.last_request, job_end)),
        ]
        master.ask(go | go_fetch, chosen)

        # --- the data channel ---------------------------------------------------------------------
        expected = under_way.o.payload
        beat = Signal(8)
        comes = Signal()
        bad = Signal()
        good = Signal()
        m.d.comb += [
            axi.rready.eq(1),
            comes.eq(axi.rvalid & under_way.o.valid),
            bad.eq((axi.rresp != Response.OKAY) | (axi.rlast != (beat == expected.length))),
            good.eq(comes & ~bad & ~stopped),
            under_way.o.ready.eq(comes & axi.rlast),
            fetcher.words.valid.eq(good & expected.fetch),
            fetcher.words.payload.data.eq(axi.rdata),
            read.i.valid.eq(good & ~expected.fetch),
            read.i.payload.data.eq(axi.rdata),
            self.job_read.eq(good & axi.rlast & expected.end & ~expected.fetch),
            self.fetch_read.eq(good & axi.rlast & expected.end & expected.fetch),
        ]
        with m.If(comes):
            m.d.sync += beat.eq(Mux(axi.rlast, 0, beat + 1))
            with m.If(bad & ~stopped):
                m.d.sync += self.error.eq(
                    Mux(axi.rresp == Response.OKAY, Response.EXOKAY, axi.rresp)
                )

        # --- words to slices ----------------------------------------------------------------------
        connect(m, pieces.o, unpacker.pieces)
        connect(m, read.o, unpacker.words)
        m.d.sync += room.eq(room - Mux(go, asked.length + 1, 0) + (read.o.valid & read.o.ready))
        connect(m, unpacker.keys, flipped(self.key.slices))
        connect(m, unpacker.values, flipped(self.value.slices))
        connect(m, fetcher.keys, flipped(self.key.leaving))
        connect(m, fetcher.values, flipped(self.value.leaving))
        master.end(offers=axi.arvalid, answered=axi.rvalid)
        with m.If(self.idle):
            m.d.sync += [beat.eq(0), room.eq(config.read_ahead)]
        return m


def _log2(power: int) -> int:
    return power.bit_length() - 1
