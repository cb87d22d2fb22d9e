"""Record reader: fetches what a job's attention reads, and records that leave the window."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ResetInserter, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from rtl.axi import Axi4Read, Response, drive_attributes
from rtl.burst_splitter import BurstSplitter, burst_layout
from rtl.layouts import coded_plane_layout, key_input_layout, value_input_layout
from rtl.leaving_fetcher import LeavingFetcher
from rtl.memory_layouts import (
    APPEND_BITS,
    fetch_layout,
    largest_record_bytes,
    piece_layout,
    read_job_layout,
)
from rtl.record_unpacker import RecordUnpacker
from rtl.record_walker import RecordWalker

__all__ = ["RecordReader"]

_BURSTS = 16  # under way at once; with short pieces they are few beats each
_PATIENCE = 1 << 16  # cycles without a beat after which a burst is given up, while draining


class RecordReader(wiring.Component):
    """Read master of the KV memory.

    Pieces of a job (`rtl.record_walker`) are requested as INCR bursts while there is room for their
    words, `read_ahead` beats in all, so that RREADY is always high; jobs follow one another without
    a pause. Bursts of at most ``read_ahead / 2`` beats, one transaction identifier.

    Records of a token that leaves the window come from buffers of their own, and are requested
    before what else waits: an append never waits for attention.

    What the bus reports ends everything: `error` is set, nothing more is requested, and nothing
    that still comes is believed. `cancel` then drains what is under way, throws away all data and
    forgets job and fetch. Bursts are given up when 65536 cycles brought no beat, counted from when
    the last address was taken.

    Attributes
    ----------
    jobs : stream In, `read_job_layout`; a job is taken when its last piece is on its way
    fetches : stream In, `fetch_layout`; taken when its planes have left
    keys_appended, values_appended : In, how many appends are in memory, modulo ``2**APPEND_BITS``.
        A job's newest records, and a fetch, are requested when these are at most half the range
        ahead of `appends`.
    keys, values : stream Out, `key_input_layout` and `value_input_layout`
    leaving_keys, leaving_values : stream Out, `coded_plane_layout`, in the order of the record
    job_read : Out, pulse: all words of a job have come, its records may be overwritten
    fetch_read : Out, pulse: the same for a fetch
    fenced : Out, a piece waits for an append
    error : Out, `Response` of the first beat that was not OKAY; EXOKAY: RLAST was not where it
        belongs, or the response was EXOKAY
    cancel : In, hold until `idle`
    idle : Out, `cancel` has done its work
    m_axi : Out, `Axi4Read`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        planes = stream.Signature(coded_plane_layout(config))
        super().__init__(
            {
                "jobs": In(stream.Signature(read_job_layout(config))),
                "fetches": In(stream.Signature(fetch_layout(config))),
                "keys_appended": In(APPEND_BITS),
                "values_appended": In(APPEND_BITS),
                "keys": Out(stream.Signature(key_input_layout(config))),
                "values": Out(stream.Signature(value_input_layout(config))),
                "leaving_keys": Out(planes),
                "leaving_values": Out(planes),
                "job_read": Out(1),
                "fetch_read": Out(1),
                "fenced": Out(1),
                "error": Out(Response),
                "cancel": In(1),
                "idle": Out(1),
                "m_axi": Out(Axi4Read(config.address_bits, config.memory_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        word = config.memory_bits // 8
        most_words = word + config.block * largest_record_bytes(config) // word
        forget = ResetInserter(self.idle)

        walker = RecordWalker(config)
        fetcher = LeavingFetcher(config)
        unpacker = RecordUnpacker(config)
        # two bursts under way even where little is read ahead
        splitter = BurstSplitter(config, most_words, config.read_ahead // 2)
        fetch_splitter = BurstSplitter(config, fetcher.most_words)
        pieces = SyncFIFO(width=Shape.cast(piece_layout(config)).width, depth=_BURSTS)
        read = SyncFIFOBuffered(width=config.memory_bits, depth=config.read_ahead)
        bursts = SyncFIFO(width=Shape.cast(_burst_tag).width, depth=_BURSTS)
        for name, part in {
            "walker": walker,
            "fetcher": fetcher,
            "unpacker": unpacker,
            "splitter": splitter,
            "fetch_splitter": fetch_splitter,
            "pieces": pieces,
            "read": read,
            "bursts": bursts,
        }.items():
            m.submodules[name] = forget(part)

        stopped = Signal()  # nothing is requested, nothing is believed
        m.d.comb += stopped.eq((self.error != Response.OKAY) | self.cancel)

        # --- pieces to requests -------------------------------------------------------------------
        connect(m, flipped(self.jobs), walker.jobs)
        connect(m, flipped(self.fetches), fetcher.fetches)
        connect(m, fetcher.requests, fetch_splitter.requests)

        def appended(counter: Value, needed: Value) -> Value:
            return ~(counter - needed)[APPEND_BITS - 1]

        job, fetch = self.jobs.payload, self.fetches.payload
        placed = walker.pieces.payload
        m.d.comb += [
            walker.keys_appended.eq(appended(self.keys_appended, job.appends)),
            walker.values_appended.eq(appended(self.values_appended, job.appends)),
            fetcher.appended.eq(
                appended(self.keys_appended, fetch.appends)
                & appended(self.values_appended, fetch.appends)
            ),
            self.fenced.eq(walker.fenced),
            splitter.requests.valid.eq(walker.pieces.valid & pieces.w_rdy),
            splitter.requests.payload.address.eq(placed.address),
            splitter.requests.payload.words.eq((placed.piece.last_byte >> _log2(word)) + 1),
            walker.pieces.ready.eq(splitter.requests.ready & pieces.w_rdy),
            pieces.w_en.eq(walker.pieces.valid & splitter.requests.ready),
            pieces.w_data.eq(placed.piece),
        ]
        job_end = Signal()  # of the request that is in the splitter
        with m.If(splitter.requests.valid & splitter.requests.ready):
            m.d.sync += job_end.eq(placed.job_end)

        # --- requests to the address channel: fetches first ---------------------------------------
        axi = self.m_axi
        drive_attributes(m, axi, "ar")
        room = Signal(range(config.read_ahead + 1), init=config.read_ahead)  # for words of jobs
        asked = splitter.bursts.payload
        chosen = Signal(burst_layout(config))
        go_fetch, go = Signal(), Signal()
        tag = Signal(_burst_tag)
        free = (~axi.arvalid | axi.arready) & bursts.w_rdy & ~stopped
        m.d.comb += [
            go_fetch.eq(free & fetch_splitter.bursts.valid),
            go.eq(free & ~go_fetch & splitter.bursts.valid & (asked.length < room)),
            fetch_splitter.bursts.ready.eq(go_fetch),
            splitter.bursts.ready.eq(go),
            chosen.eq(Mux(go_fetch, fetch_splitter.bursts.payload, asked)),
            tag.length.eq(chosen.length),
            tag.fetch.eq(go_fetch),
            tag.end.eq(chosen.last & Mux(go_fetch, fetcher.last_request, job_end)),
            bursts.w_en.eq(go | go_fetch),
            bursts.w_data.eq(tag),
        ]
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(go | go_fetch):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(chosen.address),
                axi.arlen.eq(chosen.length),
            ]

        # --- the data channel ---------------------------------------------------------------------
        expected = data.View(_burst_tag, bursts.r_data)
        beat = Signal(8)
        comes = Signal()
        bad = Signal()
        good = Signal()
        m.d.comb += [
            axi.rready.eq(1),
            comes.eq(axi.rvalid & bursts.r_rdy),
            bad.eq((axi.rresp != Response.OKAY) | (axi.rlast != (beat == expected.length))),
            good.eq(comes & ~bad & ~stopped),
            bursts.r_en.eq(comes & axi.rlast),
            fetcher.words.valid.eq(good & expected.fetch),
            fetcher.words.payload.data.eq(axi.rdata),
            read.w_en.eq(good & ~expected.fetch),
            read.w_data.eq(axi.rdata),
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
        m.d.comb += [
            unpacker.pieces.valid.eq(pieces.r_rdy),
            unpacker.pieces.payload.eq(pieces.r_data),
            pieces.r_en.eq(unpacker.pieces.ready),
            unpacker.words.valid.eq(read.r_rdy),
            unpacker.words.payload.data.eq(read.r_data),
            read.r_en.eq(unpacker.words.ready),
        ]
        m.d.sync += room.eq(room - Mux(go, asked.length + 1, 0) + (read.r_rdy & read.r_en))
        connect(m, unpacker.keys, flipped(self.keys))
        connect(m, unpacker.values, flipped(self.values))
        connect(m, fetcher.keys, flipped(self.leaving_keys))
        connect(m, fetcher.values, flipped(self.leaving_values))

        # --- the end of an error ------------------------------------------------------------------
        quiet = Signal(range(_PATIENCE))
        m.d.sync += quiet.eq(Mux(axi.rvalid | axi.arvalid | ~self.cancel, 0, quiet + 1))
        m.d.comb += self.idle.eq(
            self.cancel & ~axi.arvalid & (~bursts.r_rdy | (quiet == _PATIENCE - 1))
        )
        with m.If(self.idle):
            m.d.sync += [
                self.error.eq(Response.OKAY),
                beat.eq(0),
                room.eq(config.read_ahead),
            ]
        return m


#: A burst under way: beats - 1, whose it is, and whether it is the last one of its job or fetch.
_burst_tag = data.StructLayout({"length": 8, "fetch": 1, "end": 1})


def _log2(power: int) -> int:
    return power.bit_length() - 1
