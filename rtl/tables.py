"""Tables: on-chip memories for the static data of all heads that quantization reads."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Module, Mux, ShapeLike, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import (
    FACTOR_BITS,
    SHIFT_BITS,
    centres_signature,
    factors_signature,
    load_layout,
)

__all__ = ["Tables"]


@dataclass(frozen=True)
class _Section:
    """A memory with the same number of words for each head."""

    name: str
    shape: ShapeLike
    bits: int
    words: int


class Tables(wiring.Component):
    """Centres and feedback matrices of `table_heads` heads: five memories with a read port each.

    ======= ============== =============================== ===================
    section memory         words of a head                 bits of a word
    ======= ============== =============================== ===================
    0       key centres    D                               16
    1, 3    key and value  `feedback_words`, the rows of    4 x `feedback_lanes`
            factors        golden/tables.py
    2, 4    key and value  D                               3
            shifts
    ======= ============== =============================== ===================

    The factors of a matrix are about 5 D**2 / 2 bits: in all 1.9 Mbit for 90 heads of 64 elements,
    meant for SRAM with a synchronous read port.

    Loading: a header word, ``section | head << 3``, then any number of words of the section, from
    the head's first word on; the words of the next heads follow. A memory word of b bits comes in
    ceil(b / 32) words, least significant first. Words beyond the last head, and all words after a
    header that names no section or head, are taken and ignored. Throughput one word per cycle.
    Words that are being read must not be loaded.

    Attributes
    ----------
    load : stream In, `load_layout`
    centres : read port, `centres_signature`
    key_factors, value_factors : read ports, `factors_signature`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "load": In(stream.Signature(load_layout())),
                "centres": In(centres_signature(config)),
                "key_factors": In(factors_signature(config)),
                "value_factors": In(factors_signature(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        factors = _Section(
            "factors",
            data.ArrayLayout(signed(FACTOR_BITS), config.feedback_lanes),
            FACTOR_BITS * config.feedback_lanes,
            config.feedback_words,
        )
        shifts = _Section("shifts", SHIFT_BITS, SHIFT_BITS, config.head_dim)
        centres = _Section("centres", signed(16), 16, config.head_dim)
        key, value = self.key_factors, self.value_factors
        readers = [
            ("key", centres, self.centres.table, self.centres.element, self.centres.value),
            ("key", factors, key.table, key.word, key.factors),
            ("key", shifts, key.table, key.row, key.shift),
            ("value", factors, value.table, value.word, value.factors),
            ("value", shifts, value.table, value.row, value.shift),
        ]

        # --- loading: where the next word goes ----------------------------------------------------
        word, first = self.load.payload.data, self.load.payload.first
        section = Signal(3)
        depths = [config.table_heads * section.words for _, section, *_ in readers]
        address = Signal(range(max(depths) + 1))
        chunks = [-(-section.bits // 32) for _, section, *_ in readers]
        chunk = Signal(range(max(chunks)))
        held = Array(Signal(32, name=f"held_{n}", reset_less=True) for n in range(max(chunks) - 1))
        writes = Signal()
        m.d.comb += self.load.ready.eq(1)
        last_chunk = Signal()
        with m.Switch(section):
            for number, count in enumerate(chunks):
                with m.Case(number):
                    m.d.comb += last_chunk.eq(chunk == count - 1)
        with m.If(self.load.valid & first):
            m.d.sync += [section.eq(word[:3]), chunk.eq(0)]
            head = word[3:]
            with m.Switch(word[:3]):
                for number, (_, of_head, *_rest) in enumerate(readers):
                    with m.Case(number):
                        start = Mux(head < config.table_heads, _times(head[:10], of_head.words), -1)
                        m.d.sync += address.eq(start)
        with m.Elif(self.load.valid):
            m.d.sync += chunk.eq(Mux(last_chunk, 0, chunk + 1))
            for n, part in enumerate(held):
                with m.If(chunk == n):
                    m.d.sync += part.eq(word)
            m.d.comb += writes.eq(last_chunk)
            with m.If(writes & ~address.all()):
                m.d.sync += address.eq(address + 1)

        for number, (tensor, kind, table, index, answer) in enumerate(readers):
            depth = depths[number]
            memory = Memory(shape=kind.shape, depth=depth, init=[])
            m.submodules[f"{tensor}_{kind.name}"] = memory
            write, read = memory.write_port(), memory.read_port()
            whole = Cat(*held[: chunks[number] - 1], word)[: kind.bits]
            m.d.comb += [
                write.en.eq(writes & (section == number) & (address < depth)),
                write.addr.eq(address),
                write.data.eq(whole),
                read.en.eq(1),
                read.addr.eq(_times(table, kind.words) + index),
                answer.eq(read.data),
            ]
        return m


def _times(value: Value, factor: int) -> Value:
    """Return value * factor, by one adder for each set bit of the factor but the first."""
    places = [i for i in range(factor.bit_length()) if factor >> i & 1]
    return sum((value << i for i in places[1:]), value << places[0])
