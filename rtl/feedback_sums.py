"""Feedback sums: add errors of earlier elements for later elements, without multipliers."""

from __future__ import annotations

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.fixed_point import rshift_round, saturate, triple
from rtl.layouts import factors_signature

__all__ = ["FeedbackSums"]


class FeedbackSums(wiring.Component):
    """Compute ``a[j] = sat(a[j] + factor[k][j] * err_k)``, j > k.

    This is step 6 of docs/contract.md ("Quantizer"), a part of the quantizer. The sums are stored
    in four words of D / 4 sums. One word is updated per cycle, first the word of element k + 1,
    whose sum is ready in the next cycle. The other three words are updated while that element's
    digits are found, so D / 4 lanes are as fast as D lanes. A lane is an adder that chooses among
    one to four times the error (three times is computed once for all lanes).

    Widths: ``|err| <= 2**(conditioned_bits - 1)`` by saturation. A sum is saturated to
    conditioned_bits + 1 bits at every update: that is `requantized_bits`, the width of the element
    to which the sum is added. Without saturation a sum would need log2(D) + 2 bits more.

    Attributes
    ----------
    clear : In, a vector begins: all sums are zero
    table : In, number of the matrix; stable from `clear` on
    take : In, `sum` has been used
    update : In, element k has its `error`, before saturation. `row` is k, and has been for three
        cycles or more. Updates are at least three cycles apart.
    ready, sum : Out, ``a[k]`` of the next element
    factors : read port, `factors_signature`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "clear": In(1),
                "table": In(range(config.table_heads)),
                "take": In(1),
                "update": In(1),
                "row": In(range(config.head_dim)),
                "error": In(signed(config.requantized_bits + 2)),
                "ready": Out(1),
                "sum": Out(signed(config.requantized_bits)),
                "factors": Out(factors_signature(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        lanes, bits = config.feedback_lanes, config.requantized_bits
        row = data.ArrayLayout(signed(bits), lanes)
        m.submodules.sums = sums = Memory(shape=row, depth=4, init=[])
        read, write = sums.read_port(domain="comb"), sums.write_port()

        clipped, _ = saturate(self.error, config.conditioned_bits)
        error = Signal(signed(config.conditioned_bits))
        once = Signal.like(error, reset_less=True)
        thrice = Signal(signed(config.conditioned_bits + 2), reset_less=True)
        m.d.comb += error.eq(rshift_round(clipped, self.factors.shift))
        multiples = [Signal.like(thrice, name=f"multiple_{n}") for n in range(1, 5)]
        for multiple, value in zip(multiples, (once, once << 1, thrice, once << 2), strict=True):
            m.d.comb += multiple.eq(value)

        # `word` and `lane` are those of the next element; words up to the last follow
        next_word, next_lane = Signal(range(4)), Signal(range(lanes))
        updating, first, opening = Signal(), Signal(), Signal()
        word, lane = Signal(range(4)), Signal(range(lanes))
        stored = Signal(range(config.feedback_words))  # word of the matrix
        m.d.comb += [
            self.factors.table.eq(self.table),
            self.factors.row.eq(self.row),
            self.factors.word.eq(Mux(updating, stored + 1, stored)),
            read.addr.eq(word),
            write.addr.eq(word),
            write.en.eq(updating),
        ]
        for j in range(lanes):
            old = Signal(signed(bits), name=f"old_{j}")
            added = Signal(signed(bits + 2), name=f"added_{j}")
            choice = Signal(4, name=f"choice_{j}")
            factor = self.factors.factors[j]
            m.d.comb += [
                old.eq(Mux(opening, 0, read.data[j])),
                choice.eq(_magnitude(factor)),
                added.eq(_add_chosen(old, multiples, choice, factor[-1])),
                write.data[j].eq(saturate(added, bits)[0]),
            ]

        with m.If(self.take):
            m.d.sync += self.ready.eq(0)
        with m.If(updating):
            m.d.sync += [stored.eq(stored + 1), word.eq(word + 1), first.eq(0)]
            with m.If(first):
                m.d.sync += [self.sum.eq(Array(write.data)[lane]), self.ready.eq(1)]
            with m.If(word == 3):
                m.d.sync += updating.eq(0)
        with m.If(self.update):
            m.d.sync += [
                once.eq(error),
                thrice.eq(triple(error)),
                word.eq(next_word),
                lane.eq(next_lane),
                updating.eq(self.row != config.head_dim - 1),
                first.eq(1),
                opening.eq(self.row == 0),
                next_lane.eq(next_lane + 1),
            ]
            with m.If(next_lane == lanes - 1):
                m.d.sync += [next_lane.eq(0), next_word.eq(next_word + 1)]
        with m.If(self.clear):
            second_word, second_lane = divmod(1, lanes)
            m.d.sync += [
                next_word.eq(second_word),
                next_lane.eq(second_lane),
                stored.eq(0),
                self.sum.eq(0),
                self.ready.eq(1),
            ]
        return m


def _magnitude(factor: Value) -> Value:
    """Return whether a factor of -4..4 is 1, 2, 3, 4 in magnitude: one bit each.

    In two's complement the second bit and the sign tell 1 from 3 for odd factors; even factors are
    2 or 4.
    """
    differs = factor[1] ^ factor[-1]
    odd = factor[0]
    return Cat(odd & ~differs, ~odd & factor[1], odd & differs, ~odd & ~factor[1] & factor[2])


def _add_chosen(total: Value, multiples: list[Signal], choice: Value, negative: Value) -> Value:
    """Return total plus or minus the chosen multiple, if any, by one adder."""
    bits: Value = C(0)
    for multiple, chosen in zip(multiples, choice, strict=True):
        bits |= multiple.as_unsigned() & chosen.replicate(len(multiple))
    term = (bits ^ negative.replicate(len(bits))).as_signed()
    return (Cat(1, total).as_signed() + Cat(negative, term).as_signed())[1:].as_signed()
