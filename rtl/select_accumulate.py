"""Select-accumulate: weighted sums of ternary value digits, without multipliers."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.config import EngineConfig
from rtl.fixed_point import add_selected
from rtl.layouts import Operation, accumulate_layout, accumulator_layout

__all__ = ["SelectAccumulate"]


class SelectAccumulate(wiring.Component):
    """``acc[g][d] += weights[g] * trits[d]`` for the D elements of G heads.

    Operations, in the order of the stream: ADD takes one cycle; CLEAR one; SHIFT, an arithmetic
    right shift of every accumulator by ``shifts[g]``, takes ``1 + slices * rescale_steps`` cycles,
    whatever the shift: steps of four bits, then of one, so that a lane has no barrel shifter;
    DRAIN sends all elements out, one index a cycle.

    Attributes
    ----------
    i : stream In, `accumulate_layout`
    o : stream Out, `accumulator_layout`, D transfers a DRAIN
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(accumulate_layout(config))),
                "o": Out(stream.Signature(accumulator_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        heads = range(config.query_group)
        beat = self.i.payload

        adding, clearing, stepping = Signal(), Signal(), Signal()
        step_slice = Signal(range(config.slices))
        remaining = [Signal(config.rescale_bits, name=f"remaining_{g}") for g in heads]
        by_four = [Signal(name=f"by_four_{g}") for g in heads]
        by_one = [Signal(name=f"by_one_{g}") for g in heads]
        for g in heads:
            m.d.comb += [
                by_four[g].eq(remaining[g] >= 4),
                by_one[g].eq(~by_four[g] & (remaining[g] != 0)),
            ]

        accumulators = [
            [
                Signal(signed(config.accumulator_bits), name=f"acc_{g}_{d}", reset_less=True)
                for d in range(config.head_dim)
            ]
            for g in heads
        ]
        for g in heads:
            for d, accumulator in enumerate(accumulators[g]):
                slice_, lane = divmod(d, config.lanes)
                with m.If(adding & (beat.slice == slice_)):
                    added = add_selected(accumulator, beat.trits[lane], beat.weights[g])
                    m.d.sync += accumulator.eq(added)
                with m.Elif(stepping & (step_slice == slice_)):
                    with m.If(by_four[g]):
                        m.d.sync += accumulator.eq(accumulator >> 4)
                    with m.Elif(by_one[g]):
                        m.d.sync += accumulator.eq(accumulator >> 1)
                with m.Elif(clearing):
                    m.d.sync += accumulator.eq(0)

        step = Signal(range(config.rescale_steps))
        shifts = Signal(beat.shifts.shape(), reset_less=True)
        index = Signal(range(config.head_dim))
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    with m.Switch(beat.operation):
                        with m.Case(Operation.ADD):
                            m.d.comb += adding.eq(1)
                        with m.Case(Operation.CLEAR):
                            m.d.comb += clearing.eq(1)
                        with m.Case(Operation.SHIFT):
                            m.d.sync += shifts.eq(beat.shifts)
                            m.d.sync += [remaining[g].eq(beat.shifts[g]) for g in heads]
                            m.next = "SHIFT"
                        with m.Case(Operation.DRAIN):
                            m.next = "DRAIN"
            with m.State("SHIFT"):
                m.d.comb += stepping.eq(1)
                m.d.sync += step.eq(step + 1)
                for g in heads:
                    m.d.sync += remaining[g].eq(remaining[g] - Mux(by_four[g], 4, by_one[g]))
                with m.If(step == config.rescale_steps - 1):
                    m.d.sync += [remaining[g].eq(shifts[g]) for g in heads]
                    m.d.sync += [step.eq(0), step_slice.eq(step_slice + 1)]
                    with m.If(step_slice == config.slices - 1):
                        m.d.sync += step_slice.eq(0)
                        m.next = "TAKE"
            with m.State("DRAIN"):
                with m.If(~self.o.valid | self.o.ready):
                    m.d.sync += [
                        self.o.valid.eq(1),
                        self.o.payload.last.eq(index == config.head_dim - 1),
                        index.eq(index + 1),
                    ]
                    for g in heads:
                        m.d.sync += self.o.payload.values[g].eq(Array(accumulators[g])[index])
                    with m.If(index == config.head_dim - 1):
                        m.d.sync += index.eq(0)
                        m.next = "FLUSH"
            with m.State("FLUSH"):
                with m.If(self.o.ready):
                    m.d.sync += self.o.valid.eq(0)
                    m.next = "TAKE"
        return m
