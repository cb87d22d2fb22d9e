"""Select-add: plane sums of ternary digits against the queries of a group, without multipliers."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from rtl.adder_tree import add_levels, tree_stages
from rtl.fixed_point import select, triple
from rtl.layouts import key_sums_layout, select_add_layout
from rtl.pipeline import Pipeline

__all__ = ["SelectAdd"]


class SelectAdd(wiring.Component):
    """``sums[g] = sum_d queries[g][d] * trits[d]`` over the `lanes` elements of a slice, exact.

    A lane passes, inverts or blocks a query element. The ones that two's complement negation adds
    are the number of negative digits, counted once for all heads. Operands are added as unsigned
    numbers, 2**(query_bits-1) too large each: no adder then extends a sign. A slice of P planes has
    a tree for each; one more stage makes ``sum_c 3**c * sums_c`` of them.

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
        return tree_stages(self._config.lanes) + (self._config.key_planes_per_cycle > 1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        slice_ = self.i.payload
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)

        planes, lanes = range(config.key_planes_per_cycle), range(config.lanes)
        trits = [[slice_.trits[c * config.lanes + d] for d in lanes] for c in planes]
        operands = [
            [[_offset(select(plane[d], slice_.queries[g][d])) for d in lanes] for plane in trits]
            for g in range(config.query_group)
        ]
        negatives: list[list[Value]] = [[t.nonzero & t.negative for t in plane] for plane in trits]
        tag = slice_.tag
        for _ in range(tree_stages(config.lanes)):
            stage = pipe.stage(
                operands=[[add_levels(terms) for terms in head] for head in operands],
                negatives=[add_levels(terms) for terms in negatives],
                tag=tag,
            )
            operands, negatives, tag = stage.operands, stage.negatives, stage.tag

        ones = _weighted([terms[0] for terms in negatives])
        totals = [_weighted([terms[0] for terms in head]) for head in operands]
        if len(planes) > 1:
            stage = pipe.stage(totals=totals, ones=ones, tag=tag)
            totals, ones, tag = stage.totals, stage.ones, stage.tag
        offset = config.slice_code_max * config.lanes << (config.query_bits - 1)
        sums = []
        for g in range(config.query_group):
            total = Signal(signed(config.sum_bits), name=f"sum_{g}")
            m.d.comb += total.eq(totals[g] + ones - offset)
            sums.append(total)
        pipe.finish(sums=sums, tag=tag)
        return m


def _weighted(planes: list[Value]) -> Value:
    """sum_c 3**c * planes[c], by Horner's rule."""
    total = planes[-1]
    for plane in reversed(planes[:-1]):
        total = triple(total) + plane
    return total


def _offset(value: Value) -> Value:
    """A signed value plus 2**(width - 1), unsigned: its sign bit inverted."""
    return Cat(value[:-1], ~value[-1])
