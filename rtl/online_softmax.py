"""Online softmax: base 2, over blocks of tokens, with an integer running maximum."""

from __future__ import annotations

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.fixed_point import rshift_round
from rtl.layouts import score_layout, start_layout, sum_layout, weight_layout
from rtl.pipeline import Pipeline

__all__ = ["OnlineSoftmax"]


class OnlineSoftmax(wiring.Component):
    """Compute weights ``2**(score - maximum)`` of a block while the next block's scores come in.

    There are two banks of `block` scores: one fills and tracks its maximum, one drains. When a bank
    is complete the running maximum becomes ``max(maximum + full, ceil(bank maximum))``, where
    `full` is 1 if the sum of weights has reached `sum_limit`. The rise of the running maximum is
    the shift that rescales everything accumulated before; the shift travels with the block's first
    weight. After a job's last weight the denominators leave on `sums`.

    A job starts from its learned sinks, which are taken from `starts` when its first bank is
    complete. A head without a learned sink starts from a sum of zero and its first bank's maximum.

    Throughput one score and one weight per cycle; `LATENCY` cycles from the last score of a block
    to its first weight, once the previous bank has drained.

    Attributes
    ----------
    starts : stream In, `start_layout`, one transfer per job
    i : stream In, `score_layout`
    o : stream Out, `weight_layout`, one transfer per token
    sums : stream Out, `sum_layout`, one transfer per job
    """

    LATENCY = 7

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "starts": In(stream.Signature(start_layout(config))),
                "i": In(stream.Signature(score_layout(config))),
                "o": Out(stream.Signature(weight_layout(config))),
                "sums": Out(stream.Signature(sum_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        heads = range(config.query_group)
        scores_shape = data.ArrayLayout(signed(config.score_bits), config.query_group)

        m.submodules.bank = bank = Memory(shape=scores_shape, depth=2 * config.block, init=[])
        write = bank.write_port()
        read = bank.read_port()

        # state of each bank once its block is complete
        full = Array(Signal(name=f"full_{b}") for b in range(2))
        last_index = Array(Signal(range(config.block), name=f"last_index_{b}") for b in range(2))
        ends_job = Array(Signal(name=f"ends_job_{b}") for b in range(2))
        largest = [Signal(scores_shape, name=f"largest_{b}") for b in range(2)]

        # --- fill -----------------------------------------------------------------------------
        fill_bank = Signal()
        fill_index = Signal(range(config.block))
        running = Signal(scores_shape)
        score = self.i.payload
        m.d.comb += [
            self.i.ready.eq(~full[fill_bank]),
            write.addr.eq(fill_bank * config.block + fill_index),
            write.data.eq(score.scores),
            write.en.eq(self.i.valid & self.i.ready),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += fill_index.eq(fill_index + 1)
            for g in heads:
                larger = Mux(
                    (fill_index == 0) | (score.scores[g] > running[g]), score.scores[g], running[g]
                )
                m.d.sync += running[g].eq(larger)
                with m.If(score.block_end):
                    for b in range(2):
                        with m.If(fill_bank == b):
                            m.d.sync += largest[b][g].eq(larger)
            with m.If(score.block_end):
                m.d.sync += [
                    fill_index.eq(0),
                    fill_bank.eq(~fill_bank),
                    full[fill_bank].eq(1),
                    last_index[fill_bank].eq(fill_index),
                    ends_job[fill_bank].eq(score.job_end),
                ]

        # --- drain ----------------------------------------------------------------------------
        drain_bank = Signal()
        issue_index = Signal(range(config.block))
        job_opens = Signal(init=1)
        # heads whose maximum comes from this bank alone: the first one, without a learned sink
        no_maximum = Signal(config.query_group)
        issuing = Signal()
        sums = [
            Signal(unsigned(config.sum_of_weights_bits), name=f"sum_{g}", reset_less=True)
            for g in heads
        ]
        maximum = [
            Signal(signed(config.maximum_bits), name=f"maximum_{g}", reset_less=True) for g in heads
        ]
        ceiling = [
            Signal(signed(config.maximum_bits), name=f"ceiling_{g}", reset_less=True) for g in heads
        ]
        shifts = Signal(
            data.ArrayLayout(unsigned(config.rescale_bits), config.query_group), reset_less=True
        )

        pipe = Pipeline(m, issuing, self.o)
        # stages: read, subtract, look up, shift
        issue_last = issue_index == last_index[drain_bank]
        m.d.comb += [
            read.addr.eq(drain_bank * config.block + issue_index),
            read.en.eq(pipe.moving),
        ]
        s1 = pipe.stage(
            block_start=issue_index == 0,
            job_start=job_opens & (issue_index == 0),
            job_end=issue_last & ends_job[drain_bank],
            block_end=issue_last,
        )
        below = [Signal(unsigned(config.score_bits + 1), name=f"below_{g}") for g in heads]
        for g in heads:
            m.d.comb += below[g].eq((maximum[g] << config.score_fraction_bits) - read.data[g])
        s2 = pipe.stage(below=below, flags=s1)
        table = Array(_exp2_table(config))
        s3 = pipe.stage(
            mantissas=[table[s2.below[g][: config.score_fraction_bits]] for g in heads],
            shifts=[self._limited_shift(s2.below[g]) for g in heads],
            flags=s2.flags,
        )
        weights = [
            rshift_round(s3.mantissas[g], s3.shifts[g])[: config.weight_width] for g in heads
        ]
        s4 = pipe.stage(weights=weights, flags=s3.flags)
        pipe.finish(
            weights=s4.weights,
            shifts=shifts,
            block_start=s4.flags.block_start,
            job_start=s4.flags.job_start,
            job_end=s4.flags.job_end,
        )

        # one enable of the sums for all that changes them
        summing = Signal()
        next_sums = [Signal.like(sums[g], name=f"next_sum_{g}") for g in heads]
        m.d.comb += summing.eq(self.o.valid & self.o.ready)
        for g in heads:
            m.d.comb += [
                next_sums[g].eq(sums[g] + s4.weights[g]),
                self.sums.payload.sums[g].eq(sums[g]),
            ]
            with m.If(summing):
                m.d.sync += sums[g].eq(next_sums[g])

        with m.FSM():
            with m.State("WAIT"):
                m.d.comb += self.starts.ready.eq(full[drain_bank] & job_opens)
                with m.If(full[drain_bank] & (self.starts.valid | ~job_opens)):
                    for g in heads:
                        block_largest = Mux(drain_bank, largest[1][g], largest[0][g])
                        m.d.sync += ceiling[g].eq(_ceil_shift(block_largest, config))
                    m.d.sync += no_maximum.eq(0)
                    m.next = "RAISE"
                    with m.If(job_opens):
                        start = self.starts.payload
                        m.d.comb += summing.eq(1)
                        for g in heads:
                            present = start.sink_weight[g][config.weight_bits - 1 :].any()
                            m.d.comb += next_sums[g].eq(Mux(present, start.sink_weight[g], 0))
                            m.d.sync += [
                                no_maximum[g].eq(~present),
                                maximum[g].eq(start.sink_maximum[g]),
                            ]
            with m.State("RAISE"):
                for g in heads:
                    floor = Signal(signed(config.maximum_bits), name=f"floor_{g}")
                    rise = Signal(unsigned(config.maximum_bits), name=f"rise_{g}")
                    shift = Signal(unsigned(config.rescale_bits), name=f"shift_{g}")
                    # the limit is a power of two
                    reached = sums[g][config.sum_limit.bit_length() - 1 :].any()
                    m.d.comb += floor.eq(maximum[g] + reached)
                    raised = Mux(no_maximum[g] | (ceiling[g] > floor), ceiling[g], floor)
                    with m.If(~no_maximum[g]):
                        m.d.comb += rise.eq(raised - maximum[g])
                    m.d.comb += shift.eq(
                        Mux(rise > config.accumulator_bits, config.accumulator_bits, rise)
                    )
                    m.d.comb += next_sums[g].eq(sums[g] >> shift)
                    m.d.sync += [maximum[g].eq(raised), shifts[g].eq(shift)]
                m.d.comb += summing.eq(1)
                m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += issuing.eq(1)
                with m.If(pipe.advance):
                    m.d.sync += issue_index.eq(issue_index + 1)
                    with m.If(issue_last):
                        m.d.sync += issue_index.eq(0)
                        m.next = "FINISH"
            with m.State("FINISH"):
                with m.If(self.o.valid & self.o.ready & s4.flags.block_end):
                    m.d.sync += [
                        full[drain_bank].eq(0),
                        drain_bank.eq(~drain_bank),
                        job_opens.eq(s4.flags.job_end),
                    ]
                    m.next = "WAIT"
                    with m.If(s4.flags.job_end):
                        m.next = "SUMS"
            with m.State("SUMS"):
                m.d.comb += self.sums.valid.eq(1)
                with m.If(self.sums.ready):
                    m.next = "WAIT"
        return m

    def _limited_shift(self, below: Value) -> Value:
        """Return the integer part of a distance, clamped where every weight rounds to zero."""
        limit = self._config.weight_bits + 2
        whole = below[self._config.score_fraction_bits :]
        return Mux(whole > limit, limit, whole)[: limit.bit_length()]


def _exp2_table(config: EngineConfig) -> list[Const]:
    """Return 2**(W - f / 2**F) for each fraction f, rounded half up."""
    steps = 1 << config.score_fraction_bits
    return [
        Const(int(2 ** (config.weight_bits - f / steps) + 0.5), config.weight_width)
        for f in range(steps)
    ]


def _ceil_shift(score: Value, config: EngineConfig) -> Value:
    """Return ceil(score / 2**F)."""
    return (score + ((1 << config.score_fraction_bits) - 1)) >> config.score_fraction_bits
