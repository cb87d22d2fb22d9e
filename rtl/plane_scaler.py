"""Plane scaler: multiplies a key's plane sums by its scales, for a score in the log2 domain."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig, signed_bits
from rtl.fixed_point import rshift_round, saturate, triple
from rtl.layouts import key_sums_layout, score_layout
from rtl.pipeline import Pipeline

__all__ = ["PlaneScaler"]


class PlaneScaler(wiring.Component):
    """Sum the planes of a run by Horner's rule, and multiply by the scale at its unit plane.

    Each slice of P planes gives ``t = 3**P * t + sum``, from the most significant planes on. The
    unit plane closes the run, which contributes
    ``sat(round(t * (2**M + fraction) * 2**(exponent - query_exponent)))`` to the score. With
    power-of-two scales (M = 0) there is no multiplier, only a shifter.

    Throughput one slice per cycle, latency `LATENCY` cycles from a token's last slice to its score.

    Attributes
    ----------
    query_exponent : In, signed, one per head; stable while keys of a job pass
    i : stream In, `key_sums_layout`
    o : stream Out, `score_layout`, one transfer per token
    """

    LATENCY = 4

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        exponents = data.ArrayLayout(signed(config.query_exponent_bits), config.query_group)
        super().__init__(
            {
                "query_exponent": In(exponents),
                "i": In(stream.Signature(key_sums_layout(config))),
                "o": Out(stream.Signature(score_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:  # noqa: PLR0915  hardware in one piece
        m = Module()
        config = self._config
        heads = range(config.query_group)
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)

        # 1: Horner sum of the run
        tag = self.i.payload.tag
        run_opens = Signal(init=1)
        runs = [Signal(signed(config.run_bits), name=f"run_{g}") for g in heads]
        plane_ends = tag.slice == config.slices - 1
        with m.If(pipe.moving):
            for g in heads:
                tripled = triple(runs[g], config.key_planes_per_cycle)
                kept = Mux(tag.slice == 0, Mux(run_opens, 0, tripled), runs[g])
                m.d.sync += runs[g].eq(kept + self.i.payload.sums[g])
            with m.If(plane_ends):
                m.d.sync += run_opens.eq(tag.unit)
        s1 = pipe.stage(keep=tag.unit & plane_ends, tag=tag)

        # 2: times the scale's mantissa; meanwhile, the shift for the scale's exponent
        left = config.score_bits  # any further shift to the left saturates nonzero products
        right = config.product_bits + 1  # any further shift to the right gives zero
        products, shifts = [], []
        for g in heads:
            product = Signal(signed(config.product_bits), name=f"product_{g}")
            if config.scale_fraction_bits:
                mantissa = Cat(s1.tag.fraction, 1, 0).as_signed()
                # sums of runs that are not complete do not reach the multiplier
                m.d.comb += product.eq(Mux(pipe.valid, runs[g], 0) * mantissa)
            else:
                m.d.comb += product.eq(runs[g])
            products.append(product)
            wanted = Signal(signed(config.query_exponent_bits + 2), name=f"wanted_shift_{g}")
            m.d.comb += wanted.eq(self.query_exponent[g] - s1.tag.exponent)
            amount = Signal(range(left + right + 1), name=f"shift_{g}")
            with m.If(wanted < -left):
                m.d.comb += amount.eq(0)
            with m.Elif(wanted > right):
                m.d.comb += amount.eq(left + right)
            with m.Else():
                m.d.comb += amount.eq(wanted + left)
            shifts.append(amount)
        s2 = pipe.stage(products=products, shifts=shifts, tag=s1.tag)

        # 3: times the scale's exponent: a shift, right or left, rounded and saturated
        contributions, clipped = [], []
        for g in heads:
            shifted = Signal(signed(config.product_bits + left), name=f"shifted_{g}")
            m.d.comb += shifted.eq(rshift_round(s2.products[g] << left, s2.shifts[g]))
            value, overflow = saturate(shifted, config.score_bits)
            contributions.append(value)
            clipped.append(overflow)
        s3 = pipe.stage(contributions=contributions, clipped=clipped, tag=s2.tag)

        # 4: sum of the runs' contributions
        token_opens = Signal(init=1)
        total_bits = signed_bits(config.max_planes << (config.score_bits - 1))
        scores, saturated = [], []
        for g in heads:
            total = Signal(signed(total_bits), name=f"total_{g}")
            partial = Signal(signed(total_bits), name=f"partial_{g}")
            any_clipped = Signal(name=f"any_clipped_{g}")
            m.d.comb += total.eq(Mux(token_opens, 0, partial) + s3.contributions[g])
            clip = s3.clipped[g] | (~token_opens & any_clipped)
            with m.If(pipe.moving):
                m.d.sync += [partial.eq(total), any_clipped.eq(clip)]
            score, overflow = saturate(total, config.score_bits)
            scores.append(score)
            saturated.append(clip | overflow)
        with m.If(pipe.moving):
            m.d.sync += token_opens.eq(s3.tag.last)
        s4 = pipe.stage(
            keep=s3.tag.last,
            scores=scores,
            saturated=Cat(saturated),
            block_end=s3.tag.block_end,
            job_end=s3.tag.job_end,
        )
        pipe.finish(**vars(s4))
        return m
