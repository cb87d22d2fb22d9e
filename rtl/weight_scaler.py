"""Weight scaler: multiplies softmax weights by value scales, and triples them plane by plane."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.fixed_point import rshift_round, triple
from rtl.layouts import (
    Operation,
    accumulate_layout,
    value_slice_layout,
    weight_layout,
)
from rtl.pipeline import Pipeline

__all__ = ["WeightScaler"]


class WeightScaler(wiring.Component):
    """Join softmax weights with value slices into the operations of the value lanes.

    The slice of a unit plane has the weight
    ``round(p * (2**M + fraction) * 2**(exponent - value_exponent - M))``; every further slice of
    the run has 3**P times the weight of the slice before, with P planes per slice. CLEAR (in a
    job's first block) or SHIFT precedes a token that opens a block; DRAIN follows the last token of
    a job. With power-of-two scales (M = 0) there is no multiplier, only a shifter.

    A slice whose weights are zero for all heads adds nothing. Its ADD says so, and leaves without
    elements: the value lanes rest in its cycle.

    Throughput one slice per cycle, latency `LATENCY` cycles.

    Attributes
    ----------
    value_exponent : In, at least the largest exponent of the job's values; sampled with each slice
    weights : stream In, `weight_layout`; a weight is taken with the last slice of its token's value
    slices : stream In, `value_slice_layout`
    o : stream Out, `accumulate_layout`
    """

    LATENCY = 3

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "value_exponent": In(unsigned(config.scale_exponent_bits)),
                "weights": In(stream.Signature(weight_layout(config))),
                "slices": In(stream.Signature(value_slice_layout(config))),
                "o": Out(stream.Signature(accumulate_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        heads = range(config.query_group)
        token, slice_ = self.weights.payload, self.slices.payload

        # the operation that enters the pipeline next
        operation = Signal(Operation)
        opened = Signal()  # the operation that opens the token's block has gone ahead
        draining = Signal()
        valid = Signal()
        pipe = Pipeline(m, valid, self.o)
        with m.If(draining):
            m.d.comb += [operation.eq(Operation.DRAIN), valid.eq(1)]
            with m.If(pipe.advance):
                m.d.sync += draining.eq(0)
        with m.Elif(self.weights.valid & token.block_start & ~opened):
            m.d.comb += [
                operation.eq(Mux(token.job_start, Operation.CLEAR, Operation.SHIFT)),
                valid.eq(1),
            ]
            with m.If(pipe.advance):
                m.d.sync += opened.eq(1)
        with m.Elif(self.weights.valid):
            token_ends = slice_.last & (slice_.slice == config.slices - 1)
            m.d.comb += [
                operation.eq(Operation.ADD),
                valid.eq(self.slices.valid),
                self.slices.ready.eq(pipe.advance),
                self.weights.ready.eq(self.slices.valid & token_ends & pipe.advance),
            ]
            with m.If(self.weights.ready):
                m.d.sync += [opened.eq(0), draining.eq(token.job_end)]

        # 1: times the scale's mantissa
        adds = valid & (operation == Operation.ADD)
        products = []
        for g in heads:
            product = Signal(unsigned(config.weight_width + config.scale_fraction_bits + 1))
            if config.scale_fraction_bits:
                m.d.comb += product.eq(token.weights[g] * Cat(slice_.fraction, 1))
            else:
                m.d.comb += product.eq(token.weights[g])
            products.append(product)
        below = Signal(unsigned(config.scale_exponent_bits + 1))
        m.d.comb += below.eq(self.value_exponent - slice_.exponent + config.scale_fraction_bits)
        first = adds & slice_.unit & (slice_.slice == 0)  # the only slice with a new weight
        p1 = pipe.part(first, products=products, below=below)
        s1 = pipe.stage(
            first=first,
            next_plane=adds & (slice_.slice == 0),
            operation=operation,
            elements=slice_.elements,
            slice=slice_.slice,
            shifts=token.shifts,
        )

        # 2: times the scale's exponent
        scaled = [
            rshift_round(p1.products[g], p1.below)[: config.scaled_weight_bits] for g in heads
        ]
        p2 = pipe.part(s1.first, scaled=scaled)
        s2 = pipe.stage(
            first=s1.first,
            next_plane=s1.next_plane,
            operation=s1.operation,
            elements=s1.elements,
            slice=s1.slice,
            shifts=s1.shifts,
        )

        # 3: times the plane's power of three; the stage's own registers remember the last weight
        weights = []
        for g in heads:
            weight = Signal(config.tripled_weight_bits, name=f"weight_{g}", reset_less=True)
            with m.If(pipe.moving):
                with m.If(s2.first):
                    m.d.sync += weight.eq(p2.scaled[g])
                with m.Elif(s2.next_plane):
                    m.d.sync += weight.eq(triple(weight, config.value_planes_per_cycle))
            weights.append(weight)
        weighty = Cat(p2.scaled).any()  # p2 holds the weights of the run, for all of its slices
        p3 = pipe.part(weighty, elements=s2.elements, slice=s2.slice)
        s3 = pipe.stage(operation=s2.operation, shifts=s2.shifts, weighty=weighty)
        pipe.finish(**vars(p3), **vars(s3), weights=weights)
        return m
