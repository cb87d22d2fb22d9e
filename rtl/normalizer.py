"""Normalizer: divides accumulators by the softmax denominator, with one reciprocal per head."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.fixed_point import rshift_round, saturate
from rtl.layouts import accumulator_layout, output_layout, sum_layout
from rtl.pipeline import Pipeline

__all__ = ["Normalizer"]


class Normalizer(wiring.Component):
    """Divide accumulators by the softmax denominator of their head.

    ``out = sat(round(acc * floor(2**(R+k) / sum) * 2**-(R + k - Fo)))``, k = floor(log2(sum)).

    The denominator is shifted until its top bit is set, a restoring divider makes one bit of the
    reciprocal per cycle, and each element takes one multiply. Needs ``sum >= 2**(W-1)``, which the
    online softmax guarantees.

    Throughput one element per cycle; `reciprocal_latency` cycles from the denominators to the first
    accumulator taken, then `LATENCY` cycles per element.

    Attributes
    ----------
    sums : stream In, `sum_layout`, one transfer per job
    i : stream In, `accumulator_layout`
    o : stream Out, `output_layout`
    """

    LATENCY = 2

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "sums": In(stream.Signature(sum_layout(config))),
                "i": In(stream.Signature(accumulator_layout(config))),
                "o": Out(stream.Signature(output_layout(config))),
            }
        )

    @property
    def reciprocal_latency(self) -> int:
        """Cycles from the transfer of the denominators to `i.ready`."""
        return self._config.reciprocal_bits + 3

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        heads = range(config.query_group)
        width = config.sum_of_weights_bits
        smallest = config.weight_bits - 1  # k of the smallest denominator
        spread = width - 1 - smallest  # the most that a denominator is shifted to the left

        denominators = [Signal(width, name=f"denominator_{g}", reset_less=True) for g in heads]
        left_shifts = [
            Signal(range(spread + 1), name=f"left_shift_{g}", reset_less=True) for g in heads
        ]
        remainders = [Signal(width + 1, name=f"remainder_{g}", reset_less=True) for g in heads]
        reciprocals = [
            Signal(config.reciprocal_bits + 1, name=f"reciprocal_{g}", reset_less=True)
            for g in heads
        ]
        step = Signal(range(config.reciprocal_bits + 1))

        running = Signal()
        pipe = Pipeline(m, self.i.valid & running, self.o)
        m.d.comb += self.i.ready.eq(running & pipe.advance)

        with m.FSM():
            with m.State("WAIT"):
                m.d.comb += self.sums.ready.eq(1)
                with m.If(self.sums.valid):
                    m.d.sync += [denominators[g].eq(self.sums.payload.sums[g]) for g in heads]
                    m.next = "ALIGN"
            with m.State("ALIGN"):
                for g in heads:
                    shift = Signal(range(spread + 1), name=f"leading_zeros_{g}")
                    for zeros in reversed(range(spread + 1)):
                        with m.If(denominators[g][width - 1 - zeros]):
                            m.d.comb += shift.eq(zeros)
                    m.d.sync += [
                        denominators[g].eq(denominators[g] << shift),
                        left_shifts[g].eq(shift),
                        remainders[g].eq(1 << (width - 1)),
                    ]
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                for g in heads:
                    difference = Signal(signed(width + 2), name=f"difference_{g}")
                    fits = difference >= 0
                    m.d.comb += difference.eq(remainders[g] - denominators[g])
                    m.d.sync += [
                        remainders[g].eq(Mux(fits, difference, remainders[g]) << 1),
                        reciprocals[g].eq(Cat(fits, reciprocals[g])),
                    ]
                m.d.sync += step.eq(step + 1)
                with m.If(step == config.reciprocal_bits):
                    m.d.sync += step.eq(0)
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += running.eq(1)
                with m.If(self.i.valid & self.i.ready & self.i.payload.last):
                    m.next = "WAIT"

        # The shift right, R + k - Fo, is at least R - Fo + W - 1, for the smallest denominator.
        # That many bits, but for one that decides the rounding, are dropped before the shifter.
        dropped = config.reciprocal_bits - config.output_fraction_bits + smallest - 1
        products = []
        for g in heads:
            bits = config.accumulator_bits + config.reciprocal_bits + 1
            product = Signal(signed(bits), name=f"product_{g}")
            m.d.comb += product.eq(self.i.payload.values[g] * Cat(reciprocals[g], 0).as_signed())
            products.append(product[dropped:].as_signed())
        right_shifts = []
        for g in heads:
            # k = width - 1 - left_shift
            right_shift = Signal(range(1, spread + 2), name=f"right_shift_{g}")
            m.d.comb += right_shift.eq(1 + spread - left_shifts[g])
            right_shifts.append(right_shift)
        s1 = pipe.stage(products=products, right_shifts=right_shifts, last=self.i.payload.last)
        rounded = [rshift_round(s1.products[g], s1.right_shifts[g]) for g in heads]
        s2 = pipe.stage(
            values=[saturate(rounded[g], config.output_bits)[0] for g in heads], last=s1.last
        )
        pipe.finish(values=s2.values, last=s2.last)
        return m
