"""Normalizer: divides accumulators by the softmax denominator, with one reciprocal per head."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
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

    One restoring divider makes the reciprocals of all heads, one head after the other: it shifts
    the denominator until its top bit is set, and makes one bit of the reciprocal per cycle. Needs
    ``sum >= 2**(W-1)``, which the online softmax guarantees.

    A multiplier serves the `normalizer_turns` heads that are next to each other, in as many cycles
    per element. Their outputs leave together.

    Throughput one element per `normalizer_turns` cycles; `reciprocal_latency` cycles from the
    denominators to the first accumulator's first turn, then `LATENCY` cycles from an accumulator's
    last turn, in which it is taken, to its outputs.

    Attributes
    ----------
    sums : stream In, `sum_layout`, one transfer per job
    i : stream In, `accumulator_layout`
    o : stream Out, `output_layout`
    """

    LATENCY = 4

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
        """Cycles from the transfer of the denominators to the first turn."""
        return 1 + self._config.query_group * (self._config.reciprocal_bits + 2)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        running = Signal()
        reciprocals, right_shifts = self._divide(m, running)
        self._multiply(m, running, reciprocals, right_shifts)
        return m

    def _divide(self, m: Module, running: Signal) -> tuple[list[Signal], list[Signal]]:
        """Divide, and return the reciprocals and right shifts of the heads.

        What belongs to a head is in a chain of registers that moves on from head to head: the
        denominator in the first place is divided by, and results enter in the last place.
        """
        config = self._config
        heads = range(config.query_group)
        width = config.sum_of_weights_bits
        smallest = config.weight_bits - 1  # k of the smallest denominator
        spread = width - 1 - smallest  # the most that a denominator is shifted to the left

        denominators = [Signal(width, name=f"denominator_{g}", reset_less=True) for g in heads]
        reciprocals = [
            Signal(config.reciprocal_bits + 1, name=f"reciprocal_{g}", reset_less=True)
            for g in heads
        ]
        right_shifts = [
            Signal(range(1, spread + 2), name=f"right_shift_{g}", reset_less=True) for g in heads
        ]
        remainder = Signal(width + 1, reset_less=True)
        head = Signal(range(config.query_group))
        step = Signal(range(config.reciprocal_bits + 1))

        with m.FSM():
            with m.State("WAIT"):
                m.d.comb += self.sums.ready.eq(1)
                with m.If(self.sums.valid):
                    m.d.sync += [denominators[g].eq(self.sums.payload.sums[g]) for g in heads]
                    m.next = "ALIGN"
            with m.State("ALIGN"):
                zeros = Signal(range(spread + 1))
                for count in reversed(range(spread + 1)):
                    with m.If(denominators[0][width - 1 - count]):
                        m.d.comb += zeros.eq(count)
                m.d.sync += [
                    denominators[0].eq(denominators[0] << zeros),
                    remainder.eq(1 << (width - 1)),
                    *(reciprocals[g].eq(reciprocals[g + 1]) for g in heads[:-1]),
                    *(right_shifts[g].eq(right_shifts[g + 1]) for g in heads[:-1]),
                    right_shifts[-1].eq(1 + spread - zeros),  # k = width - 1 - zeros
                ]
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                difference = Signal(signed(width + 2))
                fits = difference >= 0
                m.d.comb += difference.eq(remainder - denominators[0])
                m.d.sync += [
                    remainder.eq(Mux(fits, difference, remainder) << 1),
                    reciprocals[-1].eq(Cat(fits, reciprocals[-1])),
                    step.eq(step + 1),
                ]
                with m.If(step == config.reciprocal_bits):
                    m.d.sync += [
                        step.eq(0),
                        head.eq(head + 1),
                        *(denominators[g].eq(denominators[g + 1]) for g in heads[:-1]),
                    ]
                    m.next = "ALIGN"
                    with m.If(head == config.query_group - 1):
                        m.d.sync += head.eq(0)
                        m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += running.eq(1)
                with m.If(self.i.valid & self.i.ready & self.i.payload.last):
                    m.next = "WAIT"
        return reciprocals, right_shifts

    def _multiply(
        self,
        m: Module,
        running: Signal,
        reciprocals: list[Signal],
        right_shifts: list[Signal],
    ) -> None:
        """Multiply accumulators by reciprocals, round, and send the outputs of all heads."""
        config = self._config
        turns = config.normalizer_turns
        groups = [
            list(range(first, min(first + turns, config.query_group)))
            for first in range(0, config.query_group, turns)
        ]
        turn = Signal(range(turns))
        last_turn = turn == turns - 1
        pipe = Pipeline(m, self.i.valid & running, self.o)
        m.d.comb += self.i.ready.eq(running & pipe.advance & last_turn)
        with m.If(pipe.moving):
            m.d.sync += turn.eq(Mux(last_turn, 0, turn + 1))

        def of_turn(values: Any) -> list[Value]:
            # a group of fewer heads starts with its first head until the others' turns are as many
            return [
                Array([*[values[group[0]]] * (turns - len(group)), *(values[g] for g in group)])[
                    turn
                ]
                for group in groups
            ]

        s1 = pipe.stage(
            factors=of_turn(self.i.payload.values),
            reciprocals=of_turn(reciprocals),
            right_shifts=of_turn(right_shifts),
            last_turn=last_turn,
            last=self.i.payload.last,
        )
        # The shift right, R + k - Fo, is at least R - Fo + W - 1, for the smallest denominator.
        # That many bits, but for one that decides the rounding, are dropped before the shifter.
        dropped = config.reciprocal_bits - config.output_fraction_bits + config.weight_bits - 2
        # The low and the high bits of an accumulator are multiplied apart, and the halves of the
        # product added a cycle later. No carry comes from the bits below the high half.
        low_bits = min(dropped, 3 * config.accumulator_bits // 5)
        lows, highs = [], []
        for number, (factor, reciprocal) in enumerate(zip(s1.factors, s1.reciprocals, strict=True)):
            low = Signal(low_bits + len(reciprocal), name=f"low_{number}")
            high = Signal(signed(len(factor) - low_bits + len(reciprocal)), name=f"high_{number}")
            m.d.comb += [
                low.eq(factor[:low_bits] * reciprocal),
                high.eq(factor[low_bits:].as_signed() * Cat(reciprocal, 0).as_signed()),
            ]
            lows.append(low[low_bits:])
            highs.append(high)
        s2 = pipe.stage(
            lows=lows,
            highs=highs,
            right_shifts=s1.right_shifts,
            last_turn=s1.last_turn,
            last=s1.last,
        )
        sums = [(low + high)[: len(high)] for low, high in zip(s2.lows, s2.highs, strict=True)]
        s3 = pipe.stage(
            products=[total[dropped - low_bits :].as_signed() for total in sums],
            right_shifts=s2.right_shifts,
            last_turn=s2.last_turn,
            last=s2.last,
        )
        outputs = []
        for number, group in enumerate(groups):
            chain = [
                Signal(signed(config.output_bits), name=f"output_{g}", reset_less=True)
                for g in group
            ]
            rounded = rshift_round(s3.products[number], s3.right_shifts[number])
            with m.If(pipe.moving):
                m.d.sync += Cat(chain).eq(Cat(chain[1:], saturate(rounded, config.output_bits)[0]))
            outputs += chain
        s4 = pipe.stage(keep=s3.last_turn, last=s3.last)
        pipe.finish(values=outputs, last=s4.last)
