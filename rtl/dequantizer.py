"""Dequantizer: turns a vector's planes into the integers that they stand for, by adders only."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.layouts import coded_plane_layout, requantized_layout
from rtl.pipeline import Pipeline

__all__ = ["Dequantizer"]


class Dequantizer(wiring.Component):
    """Compute ``x[d] = (2**M + fraction) * 2**exponent * sum_c 3**c * trit_c[d]``, exactly.

    The vectors have one run and were quantized from elements of at most `conditioned_max`: then
    ``|x| < 2 * conditioned_max`` (`EngineConfig.requantized_bits`). The planes are kept until the
    last has come, then shifted out by one element per cycle. A code of five digits takes four
    adders, its product with the mantissa one adder per fraction bit (M), and one shifter follows.

    Throughput one plane per cycle; then, `LATENCY` cycles after the last plane, one element per
    cycle. The next vector's planes are taken once the last element has left the planes.

    Attributes
    ----------
    i : stream In, `coded_plane_layout`; a run's planes in either order, `unit` on the plane of
        weight 1, which has the scale, `last` on the plane that comes last
    o : stream Out, `requantized_layout`, D elements per vector
    """

    LATENCY = 4

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(coded_plane_layout(config))),
                "o": Out(stream.Signature(requantized_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        count, dim = config.max_planes, config.head_dim
        plane = self.i.payload

        # planes by weight: `rows[0]` is the unit plane
        rows = [Signal(2 * dim, name=f"row_{c}", reset_less=True) for c in range(count)]
        opened = Signal()  # the first plane has been taken
        rising = Signal(reset_less=True)  # the unit plane came first
        position = Signal(range(count), reset_less=True)
        fraction = Signal(config.scale_fraction_bits, reset_less=True)
        exponent = Signal(config.scale_exponent_bits, reset_less=True)
        sending = Signal()
        index = Signal(range(dim))

        pipe = Pipeline(m, sending, self.o)
        code = pipe.stage(code=sum(self._term(c, rows[c]) for c in range(count)))
        in_code = pipe.valid
        product = pipe.stage(product=self._times_mantissa(code.code, fraction))
        in_product = pipe.valid
        value = pipe.stage(value=product.product << exponent)
        pipe.finish(value=value.value)

        m.d.comb += self.i.ready.eq(~(sending | in_code | in_product))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [opened.eq(~plane.last), sending.eq(plane.last)]
            trits = plane.trits.as_value()
            with m.If(~opened):
                m.d.sync += [row.eq(0) for row in rows]
                m.d.sync += [rows[0].eq(trits), rising.eq(plane.unit), position.eq(1)]
            with m.Elif(rising):
                for c in range(1, count):
                    with m.If(position == c):
                        m.d.sync += rows[c].eq(trits)
                m.d.sync += position.eq(position + 1)
            with m.Else():
                m.d.sync += [above.eq(row) for above, row in zip(rows[1:], rows, strict=False)]
                m.d.sync += rows[0].eq(trits)
            with m.If(plane.unit):
                m.d.sync += [fraction.eq(plane.fraction), exponent.eq(plane.exponent)]
        with m.If(sending & pipe.advance):
            m.d.sync += [row.eq(row >> 2) for row in rows]
            m.d.sync += index.eq(index + 1)
            with m.If(index == dim - 1):
                m.d.sync += [index.eq(0), sending.eq(0)]
        return m

    @staticmethod
    def _term(c: int, row: Signal) -> Value:
        """Return 3**c times the first trit of a row."""
        return Mux(row[0], Mux(row[1], -(3**c), 3**c), 0)

    def _times_mantissa(self, code: Value, fraction: Signal) -> Value:
        """Return code * (2**M + fraction), by one adder per fraction bit."""
        terms = (Mux(bit, code << i, 0) for i, bit in enumerate(fraction))
        return sum(terms, code << len(fraction))
