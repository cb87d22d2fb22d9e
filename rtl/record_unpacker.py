"""Record unpacker: memory words to plane slices. docs/contract.md ("Memory") defines records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import plane_bytes, scale_bytes
from rtl.layouts import coded_plane_layout, key_input_layout, value_input_layout
from rtl.memory_layouts import piece_layout, word_layout
from rtl.pipeline import Pipeline
from rtl.unpacker import decode_plane

__all__ = ["RecordUnpacker"]


class RecordUnpacker(wiring.Component):
    """Cut records out of memory words and send their planes, slice by slice.

    A *piece* is a sequence of consecutive records. The words of a piece come one after the other;
    the first and the last word may hold bytes outside the piece. Records start at any byte.

    The planes of a slice leave in one cycle, with their scale if the slice opens a run. Throughput
    is one slice per cycle, also across pieces, as long as words come fast enough, and one word per
    cycle where words are narrower than a slice. A slice leaves `latency` cycles after its planes'
    last word.

    If a run's number of planes is not a multiple of the planes per slice, the slice at the run's
    most significant end is incomplete. A value run ends with that slice; a key run, whose unit
    plane comes last, begins with it.

    Attributes
    ----------
    pieces : stream In, `piece_layout`
    words : stream In, `word_layout`
    keys, values : stream Out, `key_input_layout` and `value_input_layout`; fraction and exponent of
        slices without a unit plane are meaningless
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "pieces": In(stream.Signature(piece_layout(config))),
                "words": In(stream.Signature(word_layout(config))),
                "keys": Out(stream.Signature(key_input_layout(config))),
                "values": Out(stream.Signature(value_input_layout(config))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from a plane's last memory word to its first slice.

        One cycle more if a chunk needs several words.
        """
        return 3 + (self._config.memory_bits // 8 < _chunk_bytes(self._config))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.chunker = chunker = _Chunker(config)
        m.submodules.aligner = aligner = _Aligner(config)
        connect(m, flipped(self.pieces), chunker.pieces)
        connect(m, flipped(self.words), chunker.words)
        connect(m, chunker.chunks, aligner.chunks)

        # --- bytes to trits ---------------------------------------------------------------------
        planes = stream.Signature(
            data.StructLayout({"plane": coded_plane_layout(config, _most(config)), "value": 1})
        ).create(path=("plane",))
        pipe = Pipeline(m, aligner.o.valid, planes)
        m.d.comb += aligner.o.ready.eq(pipe.advance)
        packed = aligner.o.payload
        stage = pipe.stage(packed=packed)
        packed = stage.packed
        trits = Cat(decode_plane(config, plane) for plane in _lowest_first(config, packed))
        scale_bits = config.scale_fraction_bits
        stage = pipe.stage(
            plane=Cat(
                trits,
                packed.scale[:scale_bits],
                packed.scale[scale_bits : config.scale_bits],
                packed.unit,
                packed.last,
            ),
            value=packed.value,
        )
        pipe.finish(plane=stage.plane, value=stage.value)

        # --- planes to slices -------------------------------------------------------------------
        slice_number = Signal(range(config.slices))
        last_slice = slice_number == config.slices - 1
        plane, value = planes.payload.plane, planes.payload.value
        slice_trits = Cat(
            _word(trits, 2 * config.lanes, slice_number)
            for trits in _words(plane.trits.as_value(), 2 * config.head_dim)
        )
        taken = planes.valid & Mux(value, self.values.ready, self.keys.ready)
        for port, chosen in ((self.keys, ~value), (self.values, value)):
            m.d.comb += [
                port.valid.eq(planes.valid & chosen),
                port.payload.elements.eq(slice_trits),
                *(
                    port.payload[field].eq(plane[field])
                    for field in ("fraction", "exponent", "unit", "last")
                ),
            ]
        m.d.comb += planes.ready.eq(taken & last_slice)
        with m.If(taken):
            m.d.sync += slice_number.eq(Mux(last_slice, 0, slice_number + 1))
        return m


def _most(config: EngineConfig) -> int:
    """Return the most planes of a slice, of keys or of values."""
    return max(config.key_planes_per_cycle, config.value_planes_per_cycle)


def _planes_bytes(config: EngineConfig) -> int:
    """Return the number of bytes of `_most` planes."""
    return _most(config) * plane_bytes(config.packing, config.head_dim)


def _chunk_bytes(config: EngineConfig) -> int:
    """Return the bytes of a chunk: a power of two that holds a scale and the planes of a slice."""
    return 1 << (_planes_bytes(config) + scale_bytes(config) - 1).bit_length()


def _packed_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a slice's planes as stored in memory, and of their scale.

    more : number of planes beyond the first; bytes behind the last plane are arbitrary
    """
    return data.StructLayout(
        {
            "bytes": data.ArrayLayout(8, _planes_bytes(config)),
            "scale": 8 * scale_bytes(config),
            "more": range(_most(config)),
            "unit": 1,
            "last": 1,
            "value": 1,
        }
    )


def _lowest_first(config: EngineConfig, packed: Any) -> list[list[Value]]:
    """Return the bytes of each plane of a slice, the lowest plane first.

    Planes that the slice lacks are zero bytes, which decode to zero trits. Memory holds values in
    this order, keys in the opposite order.
    """
    stored = _words(packed.bytes.as_value(), 8 * plane_bytes(config.packing, config.head_dim))
    planes = stored
    if len(stored) > 1:
        planes = [
            Mux(
                packed.value,
                Array(stored[place] if more >= place else 0 for more in range(len(stored)))[
                    packed.more
                ],
                Array([0] * place + stored[: len(stored) - place])[packed.more],
            )
            for place in range(len(stored))
        ]
    return [_words(plane, 8) for plane in planes]


def _more_planes(planes_per_cycle: int, left: int, value: bool) -> int:
    """Return the planes beyond the first in a run's next slice, with `left` planes to come."""
    if value:
        return max(min(left, planes_per_cycle) - 1, 0)
    return (left - 1) % planes_per_cycle  # the planes after this slice fill whole slices


def _chunk_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of a chunk: bytes of a piece, aligned in memory, and the piece's format.

    first : the piece starts in this chunk, at byte `offset`
    """
    chunk = _chunk_bytes(config)
    return data.StructLayout(
        {
            "data": 8 * chunk,
            "first": 1,
            "offset": range(chunk),
            "records": range(config.block + 1),
            "planes": range(config.max_planes + 1),
            "residual": 1,
            "value": 1,
        }
    )


class _Chunker(wiring.Component):
    """Convert words of any width to chunks of one width; every chunk holds bytes of its piece."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "pieces": In(stream.Signature(piece_layout(config))),
                "words": In(stream.Signature(word_layout(config))),
                "chunks": Out(stream.Signature(_chunk_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        word, chunk = config.memory_bits // 8, _chunk_bytes(config)
        unit = min(word, chunk)  # bytes moved per cycle
        piece = self.pieces.payload
        started = Signal()
        counted = Signal.like(piece.last_byte[_log2(unit) :])

        place = Signal.like(counted)  # of the unit within the piece's words
        last, pop = Signal(), Signal()
        valid = self.pieces.valid & self.words.valid
        ready, moving = Signal(), Signal()
        m.d.comb += [
            place.eq(Mux(started, counted, piece.offset[_log2(unit) :])),
            last.eq(place == piece.last_byte[_log2(unit) :]),
            moving.eq(valid & ready),
            self.pieces.ready.eq(moving & last),
            self.words.ready.eq(moving & pop),
        ]
        with m.If(moving):
            m.d.sync += [started.eq(~last), counted.eq(place + 1)]

        out = self.chunks.payload
        fields = ("records", "planes", "residual", "value")
        if word >= chunk:
            parts = word // chunk
            index = place[: _log2(parts)]
            m.d.comb += [
                pop.eq(last | (index == parts - 1)),
                self.chunks.valid.eq(valid),
                ready.eq(self.chunks.ready),
                out.data.eq(_word(self.words.payload.data, 8 * chunk, index)),
                out.first.eq(~started),
                out.offset.eq(piece.offset[: _log2(chunk)]),
                *(out[field].eq(piece[field]) for field in fields),
            ]
            return m

        # several words make one chunk
        parts = chunk // word
        index = place[: _log2(parts)]
        full = Signal()
        gathered = Signal(_chunk_layout(config), reset_less=True)
        m.d.comb += [
            pop.eq(1),
            ready.eq(~full | self.chunks.ready),
            self.chunks.valid.eq(full),
            out.eq(gathered),
        ]
        with m.If(self.chunks.ready):
            m.d.sync += full.eq(0)
        with m.If(moving):
            m.d.sync += [
                gathered.data.word_select(index, 8 * word).eq(self.words.payload.data),
                full.eq(last | (index == parts - 1)),
                gathered.first.eq(place[_log2(parts) :] == 0),
                gathered.offset.eq(piece.offset),
                *(gathered[field].eq(piece[field]) for field in fields),
            ]
        return m


class _Aligner(wiring.Component):
    """Align chunks to packed planes: a window over two chunks, and a third that keeps it full.

    The barrel shifter works on planes, not on memory words: its size does not depend on the
    memory's width.
    """

    _DEPTH = 3

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "chunks": In(stream.Signature(_chunk_layout(config))),
                "o": Out(stream.Signature(_packed_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        chunk = _chunk_bytes(config)
        of_plane = plane_bytes(config.packing, config.head_dim)
        of_planes, of_scale = _planes_bytes(config), scale_bytes(config)

        # --- queue of chunks: head first; up to two leave and one enters in a cycle ---------------
        queue = [
            Signal(_chunk_layout(config), name=f"chunk_{i}", reset_less=True)
            for i in range(self._DEPTH)
        ]
        count = Signal(range(self._DEPTH + 1))
        leaving = Signal(2)
        kept = Signal.like(count)
        entering = self.chunks.valid & self.chunks.ready
        m.d.comb += [
            kept.eq(count - leaving),
            self.chunks.ready.eq(kept != self._DEPTH),
        ]
        m.d.sync += count.eq(kept + entering)
        moved = [Array([*queue, queue[-1], queue[-1]])[i + leaving] for i in range(self._DEPTH)]
        for index, register in enumerate(queue):
            m.d.sync += register.eq(Mux(kept > index, moved[index], self.chunks.payload))

        # --- where the next planes start, and how many are taken ----------------------------------
        head = queue[0]
        started = Signal()  # the head's piece has begun: the registers below hold the position
        counted_place = Signal(range(chunk))
        counted_records = Signal(range(config.block + 1))
        plane = Signal(range(config.max_planes))
        fresh = head.first & ~started
        place = Mux(fresh, head.offset, counted_place)
        records = Mux(fresh, head.records, counted_records)

        numbers = range(1, _most(config) + 1)
        more = self.o.payload.more
        if len(numbers) > 1:
            left = Signal(range(config.max_planes + 1))
            of_keys, of_values = (
                Array(_more_planes(planes, n, value) for n in range(config.max_planes + 1))[left]
                for planes, value in (
                    (config.key_planes_per_cycle, False),
                    (config.value_planes_per_cycle, True),
                )
            )
            m.d.comb += [
                left.eq(head.planes - plane),
                more.eq(Mux(head.residual, 0, Mux(head.value, of_values, of_keys))),
            ]
        taken = _choice(numbers, more)
        last_plane, last_record = plane == head.planes - taken, records == 1
        opens = head.residual | (plane == 0)
        end = Signal(range(chunk + of_planes + of_scale))
        both = Signal()  # the planes reach into the second chunk
        with_scale = _choice([of_plane * number + of_scale for number in numbers], more)
        without = _choice([of_plane * number for number in numbers], more)
        m.d.comb += [
            end.eq(place + Mux(opens, with_scale, without)),
            both.eq(end > chunk),
            self.o.valid.eq(Mux(both, count >= 2, count != 0)),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.comb += leaving.eq(end >= chunk)
            m.d.sync += [started.eq(1), counted_place.eq(end), plane.eq(plane + taken)]
            with m.If(last_plane):
                m.d.sync += [plane.eq(0), counted_records.eq(records - 1)]
                with m.If(last_record):
                    m.d.comb += leaving.eq(Mux(both, 2, 1))
                    m.d.sync += started.eq(0)
            with m.Else():
                m.d.sync += counted_records.eq(records)

        # --- the planes ---------------------------------------------------------------------------
        window: Value = Cat(head.data, queue[1].data)
        length = of_planes + of_scale
        for level in reversed(range(_log2(chunk))):
            # after this level the planes start less than 2**level bytes into the window
            kept_bytes = length + (1 << level) - 1
            window = Mux(
                place[level], window[8 << level :][: 8 * kept_bytes], window[: 8 * kept_bytes]
            )
        scale = Signal(8 * of_scale, reset_less=True)
        with m.If(self.o.ready & opens):
            m.d.sync += scale.eq(window)
        m.d.comb += [
            self.o.payload.bytes.eq(Mux(opens, window[8 * of_scale :], window[: 8 * of_planes])),
            self.o.payload.scale.eq(Mux(opens, window, scale)),
            self.o.payload.unit.eq(head.residual | Mux(head.value, plane == 0, last_plane)),
            self.o.payload.last.eq(last_plane),
            self.o.payload.value.eq(head.value),
        ]
        return m


def _word(value: Value, width: int, index: Value) -> Value:
    """Select word number `index` of a value, by multiplexers."""
    return _choice(_words(value, width), index)


def _words(value: Value, width: int) -> list[Value]:
    """Split a value into words, lowest first."""
    return [value[start : start + width] for start in range(0, len(value), width)]


def _choice(options: Sequence[ValueLike], index: Value) -> Any:
    """Select option number `index`, by multiplexers."""
    return Array(options)[index] if len(options) > 1 else options[0]


def _log2(power: int) -> int:
    return power.bit_length() - 1
