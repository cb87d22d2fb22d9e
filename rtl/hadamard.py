# amaranth: UnusedElaboratable=no
# (parts are also created to read their latencies)
"""Hadamard: the signed Walsh-Hadamard transform of a streamed vector, by adders only."""

from __future__ import annotations

from amaranth.hdl import Array, C, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig, signed_bits
from rtl.layouts import conditioned_layout, element_layout

__all__ = ["Hadamard", "Walsh", "negative_signs"]


class Hadamard(wiring.Component):
    """Compute ``y = H (s * x)`` exactly, on blocks of n = `rotation_size` elements of a stream.

    Throughput one element per cycle; latency `latency` cycles from an element to the result at its
    position.

    Attributes
    ----------
    i : stream In, `element_layout`: D elements per vector, at most 2 * VECTOR_MAX in magnitude
    o : stream Out, `conditioned_layout`: D elements per vector
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(element_layout())),
                "o": Out(stream.Signature(conditioned_layout(config))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an element's transfer to the first cycle of the result at its position."""
        return Walsh(self._config, signed_bits(2 * VECTOR_MAX)).latency

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        position = Signal(range(config.head_dim))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += position.eq(Mux(position == config.head_dim - 1, 0, position + 1))

        m.submodules.walsh = walsh = Walsh(config, signed_bits(2 * VECTOR_MAX))
        negative = Array(C(bit, 1) for bit in negative_signs(config.head_dim))
        value = self.i.payload.value
        m.d.comb += [
            walsh.i.valid.eq(self.i.valid),
            walsh.i.payload.value.eq(Mux(negative[position], -value, value)),
            self.i.ready.eq(walsh.i.ready),
        ]
        connect(m, walsh.o, flipped(self.o))
        return m


class Walsh(wiring.Component):
    """Compute ``y = H x`` on blocks of n elements: the transform without its signs.

    There are log2(n) stages of one butterfly each. A stage holds back the first half of its block,
    sends the sums while the second half comes in, and the differences while the first half of the
    next block comes in. This is the single-path delay feedback of streaming Fourier transforms
    (Wold and Despain, 1984): n - 1 words of storage and 2 log2(n) adders.

    Throughput one element per cycle; latency `latency` cycles.

    Parameters
    ----------
    width : signed width of the input

    Attributes
    ----------
    i, o : streams of elements; the output is log2(n) bits wider
    """

    def __init__(self, config: EngineConfig, width: int) -> None:
        self._size = config.rotation_size
        self._width = width
        growth = self._size.bit_length() - 1
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"value": signed(width)}))),
                "o": Out(stream.Signature(data.StructLayout({"value": signed(width + growth)}))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an element's transfer to the first cycle of the result at its position."""
        return (self._size - 1) + (self._size.bit_length() - 1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, half = self._width, self._size // 2
        m.submodules.stage_0 = stage = _Butterfly(width, half)
        connect(m, flipped(self.i), stage.i)
        for level in range(1, self._size.bit_length() - 1):
            half, width, before = half // 2, width + 1, stage
            m.submodules[f"stage_{level}"] = stage = _Butterfly(width, half)
            connect(m, before.o, stage.i)
        connect(m, stage.o, flipped(self.o))
        return m


class _Butterfly(wiring.Component):
    """Send ``a + b``, then ``a - b``, of all elements a and b of a block that are `half` apart.

    Parameters
    ----------
    width : signed width of the input; the output is one bit wider
    half : elements held back; a block has twice as many

    Attributes
    ----------
    i, o : streams of blocks of 2 * half elements
    """

    def __init__(self, width: int, half: int) -> None:
        self._width, self._half = width, half
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"value": signed(width)}))),
                "o": Out(stream.Signature(data.StructLayout({"value": signed(width + 1)}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        half = self._half
        held = Array(
            Signal(signed(self._width + 1), name=f"held_{i}", reset_less=True) for i in range(half)
        )
        index = Signal(range(half))  # where the next element of the half block goes
        combining = Signal()  # the second half is coming in
        differences = Signal()  # `held` has differences of the block before, from `drained` on
        drained = Signal(range(half))

        # the output register takes a sum, a difference, or nothing
        room = Signal()
        sends = Signal()
        m.d.comb += room.eq(~self.o.valid | self.o.ready)
        value, sends_difference = self.i.payload.value, differences & room
        with m.If(differences):
            m.d.comb += sends.eq(1)
            # a place may be filled once its difference is gone, or in the cycle in which it goes
            free = (index < drained) | ((index == drained) & room)
            m.d.comb += self.i.ready.eq(~combining & free)
        with m.Else():
            m.d.comb += [
                sends.eq(combining & self.i.valid),
                self.i.ready.eq(~combining | room),
            ]
        with m.If(room):
            m.d.sync += self.o.valid.eq(sends)
            with m.If(sends):
                m.d.sync += self.o.payload.value.eq(
                    Mux(differences, held[drained], held[index] + value)
                )
        with m.If(sends_difference):
            m.d.sync += drained.eq(Mux(drained == half - 1, 0, drained + 1))
            with m.If(drained == half - 1):
                m.d.sync += differences.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                held[index].eq(Mux(combining, held[index] - value, value)),
                index.eq(Mux(index == half - 1, 0, index + 1)),
            ]
            with m.If(index == half - 1):
                m.d.sync += combining.eq(~combining)
                with m.If(combining):
                    m.d.sync += differences.eq(1)
        return m


def negative_signs(head_dim: int) -> list[int]:
    """Return a 1 for each negative sign: the low bits of a 9-bit LFSR, x**9 + x**5 + 1, from 1."""
    state, bits = 1, []
    for _ in range(head_dim):
        bits.append(state & 1)
        state = state >> 1 | ((state ^ state >> 4) & 1) << 8
    return bits
