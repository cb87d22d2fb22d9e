"""Multiply-add: the key lanes of the comparison engines, sums of integers times queries."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.adder_tree import add_levels, tree_stages
from rtl.layouts import key_sums_layout, select_add_layout
from rtl.pipeline import Pipeline

__all__ = ["MultiplyAdd"]


class MultiplyAdd(wiring.Component):
    """``sums[g] = sum_d queries[g][d] * integers[d]`` over the `lanes` elements of a slice, exact.

    One multiplier a lane and head, one stage; then the adder tree that select-add has.

    Throughput one slice a cycle, latency `latency` cycles. The tag passes along unchanged.

    Attributes
    ----------
    i : stream In, `select_add_layout`
    o : stream Out, `key_sums_layout`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(select_add_layout(config))),
                "o": Out(stream.Signature(key_sums_layout(config))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an input transfer to the output's first valid cycle."""
        return 1 + tree_stages(self._config.lanes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        slice_ = self.i.payload
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)

        products = [
            [slice_.queries[g][d] * slice_.integers[d] for d in range(config.lanes)]
            for g in range(config.query_group)
        ]
        stage = pipe.stage(terms=products, tag=slice_.tag)
        for _ in range(tree_stages(config.lanes)):
            sums = [add_levels(terms) for terms in stage.terms]
            stage = pipe.stage(terms=sums, tag=stage.tag)
        pipe.finish(sums=[terms[0] for terms in stage.terms], tag=stage.tag)
        return m
