"""Record walker: orders the reads of a job's records, as pieces of blocks of keys and values."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.memory_layouts import piece_layout, read_job_layout
from rtl.record_bytes import RecordBytes

__all__ = ["RecordWalker", "placed_piece_layout"]

_SINKS, _BODY, _WINDOW_END, _WINDOW_START = range(4)


def placed_piece_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a piece, its first byte's address, and whether it ends the job."""
    return data.StructLayout(
        {"piece": piece_layout(config), "address": unsigned(config.address_bits), "job_end": 1}
    )


class RecordWalker(wiring.Component):
    """Walk through a job in the engine's order: K block 0, then K block i+1 before V block i.

    A block is cut where its tokens go on in another tier, and where the window's ring wraps. A
    piece takes about 5 cycles, plus one per bit of its number of records.

    Attributes
    ----------
    jobs : stream In, `read_job_layout`; taken after the last piece
    keys_appended, values_appended : In, the job's newest records are in memory. Pieces of the
        window, pieces of the body from `body_slot` on, the piece with a new anchor, and the job's
        last wait for these records.
    fenced : Out, a piece waits for them
    pieces : stream Out, `placed_piece_layout`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "jobs": In(stream.Signature(read_job_layout(config))),
                "keys_appended": In(1),
                "values_appended": In(1),
                "fenced": Out(1),
                "pieces": Out(stream.Signature(placed_piece_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        job = self.jobs.payload
        m.submodules.bytes = size = RecordBytes(config, config.max_context)

        # --- where keys and values stand: indexed by `value` -------------------------------------
        def registers(name: str, shape: object) -> Array:
            return Array(Signal(shape, name=f"{side}_{name}") for side in ("key", "value"))

        addresses = registers("address", config.address_bits)
        tiers = registers("tier", 2)
        tier_tokens = registers("tier_tokens", range(config.max_context + 1))
        tokens = registers("tokens", range(config.max_context + 1))
        value = Signal()
        opening = Signal()  # of the job: no values before the second block of keys
        needed = Signal(range(config.block + 1))  # tokens until the block is complete
        ring_bytes = Signal.like(size.bytes)  # of the window's slots before its start
        fresh = Signal.like(tier_tokens[0])  # tokens of the body from the appended record on

        address, tier = addresses[value], tiers[value]
        in_tier, in_job = tier_tokens[value], tokens[value]
        bases = Array([job.key, job.value])[value]
        in_body = tier == _BODY
        digits = Mux(in_body, Mux(value, job.value_digits, job.key_digits), job.tier_digits)
        residual = in_body & job.residual
        records = Signal.like(needed)
        everything = Signal(range(config.max_context + 1))
        m.d.comb += [
            records.eq(Mux(in_tier < needed, in_tier, needed)),
            everything.eq(job.sink_tokens + job.body_tokens + job.window_tokens),
        ]

        placed = self.pieces.payload
        piece = placed.piece
        piece_ends_job = in_job == records
        in_window = (tier == _WINDOW_END) | (tier == _WINDOW_START)
        new_anchor = job.new_anchor & (tier == _SINKS) & (in_tier == records)
        fence = piece_ends_job | in_window | new_anchor | (in_body & (in_tier - records < fresh))
        open_ = ~fence | Mux(value, self.values_appended, self.keys_appended)
        m.d.comb += [
            placed.address.eq(address),
            placed.job_end.eq(value & piece_ends_job),
            piece.offset.eq(address),
            piece.last_byte.eq(piece.offset + size.bytes - 1),
            piece.records.eq(records),
            piece.planes.eq(digits),
            piece.residual.eq(residual),
            piece.value.eq(value),
        ]

        def next_block(side: int) -> None:
            left = tokens[side]
            m.d.sync += [value.eq(side), needed.eq(Mux(left < config.block, left, config.block))]
            m.next = "TIER"

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [
                    size.planes.eq(job.tier_digits),
                    size.count.eq(job.window_start),
                    size.start.eq(self.jobs.valid),
                ]
                for side, regions in enumerate((job.key, job.value)):
                    m.d.sync += [
                        addresses[side].eq(regions.sinks),
                        tiers[side].eq(_SINKS),
                        tier_tokens[side].eq(job.sink_tokens),
                        tokens[side].eq(everything),
                    ]
                with m.If(self.jobs.valid):
                    m.next = "START"
            with m.State("START"):
                m.d.sync += [
                    ring_bytes.eq(size.bytes),
                    fresh.eq(job.body_tokens - job.body_slot),
                    opening.eq(1),
                ]
                with m.If(size.done):
                    next_block(0)
            with m.State("TIER"):
                m.d.comb += [
                    size.planes.eq(digits),
                    size.residual.eq(residual),
                    size.count.eq(records),
                ]
                with m.If(in_tier != 0):
                    m.d.comb += size.start.eq(1)
                    m.next = "PIECE"
                with m.Else():
                    m.d.sync += tier.eq(tier + 1)
                    with m.Switch(tier):
                        with m.Case(_SINKS):
                            m.d.sync += [address.eq(bases.body), in_tier.eq(job.body_tokens)]
                        with m.Case(_BODY):
                            m.d.sync += [
                                address.eq(bases.window + ring_bytes),
                                in_tier.eq(job.window_tokens - job.window_start),
                            ]
                        with m.Default():
                            m.d.sync += [address.eq(bases.window), in_tier.eq(job.window_start)]
            with m.State("PIECE"):
                m.d.comb += [
                    self.pieces.valid.eq(size.done & open_),
                    self.fenced.eq(size.done & ~open_),
                ]
                with m.If(self.pieces.valid & self.pieces.ready):
                    m.d.sync += [
                        address.eq(address + size.bytes),
                        in_tier.eq(in_tier - records),
                        in_job.eq(in_job - records),
                        needed.eq(needed - records),
                    ]
                    m.next = "TIER"
                    with m.If(records == needed):
                        m.next = "TURN"
            with m.State("TURN"):
                m.d.sync += opening.eq(0)
                with m.If((tokens[0] != 0) & (opening | value)):
                    next_block(0)
                with m.Elif(tokens[1] != 0):
                    next_block(1)
                with m.Else():
                    m.d.comb += self.jobs.ready.eq(1)
                    m.next = "IDLE"
        return m
