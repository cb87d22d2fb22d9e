"""Key lanes: sums of the elements of key slices times the queries of a group."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.adder_tree import add_levels, tree_stages
from rtl.elements import elements_of
from rtl.layouts import key_lanes_layout, key_sums_layout
from rtl.pipeline import Pipeline

__all__ = ["KeyLanes"]


class KeyLanes(wiring.Component):
    """Sum ``sums[g] = sum_d queries[g][d] * elements[d]`` over the `lanes` elements of a slice.

    The kind of elements says how a lane multiplies: `rtl.elements.Trits` without multipliers,
    `rtl.elements.Integers` with one per lane and head. An adder tree sums the lanes' products
    exactly. A slice of P planes gives ``sum_c 3**c * sums_c`` of its planes' sums.

    Throughput one slice per cycle, latency `latency` cycles. The tag passes along unchanged.

    Attributes
    ----------
    i : stream In, `key_lanes_layout`
    o : stream Out, `key_sums_layout`
    """

    def __init__(self, config: EngineConfig) -> None:
        self._lanes = config.lanes
        self._elements = elements_of(config)
        super().__init__(
            {
                "i": In(stream.Signature(key_lanes_layout(config))),
                "o": Out(stream.Signature(key_sums_layout(config))),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from an input transfer to the output's first valid cycle."""
        return tree_stages(self._lanes) + self._elements.key_stages

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)

        rows, tag = self._elements.products(pipe, self.i.payload)
        for _ in range(tree_stages(self._lanes)):
            stage = pipe.stage(rows=[add_levels(terms) for terms in rows], tag=tag)
            rows, tag = stage.rows, stage.tag
        sums, tag = self._elements.sums(pipe, [terms[0] for terms in rows], tag)
        pipe.finish(sums=sums, tag=tag)
        return m
