"""Select-add: plane sums of ternary digits against the queries of a group, without multipliers."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.config import EngineConfig
from rtl.fixed_point import select
from rtl.layouts import key_sums_layout, select_add_layout
from rtl.pipeline import Pipeline

__all__ = ["SelectAdd"]

LEVELS_PER_STAGE = 2
"""Adder levels between two pipeline registers."""


class SelectAdd(wiring.Component):
    """``sums[g] = sum_d queries[g][d] * trits[d]`` over the `lanes` elements of a slice, exact.

    A lane passes, inverts or blocks a query element. The ones that two's complement negation adds
    are the number of negative digits, counted once for all heads.

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
        levels = (self._config.lanes - 1).bit_length()
        return -(-levels // LEVELS_PER_STAGE)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        slice_ = self.i.payload
        pipe = Pipeline(m, self.i.valid, self.o)
        m.d.comb += self.i.ready.eq(pipe.advance)

        operands = [
            [select(slice_.trits[d], slice_.queries[g][d]) for d in range(config.lanes)]
            for g in range(config.query_group)
        ]
        negatives: list[Value] = [
            slice_.trits[d].nonzero & slice_.trits[d].negative for d in range(config.lanes)
        ]
        tag = slice_.tag
        for _ in range(self.latency):
            for _ in range(LEVELS_PER_STAGE):
                operands = [_add_pairs(terms) for terms in operands]
                negatives = _add_pairs(negatives)
            stage = pipe.stage(operands=operands, negatives=negatives, tag=tag)
            operands, negatives, tag = stage.operands, stage.negatives, stage.tag

        sums = []
        for g in range(config.query_group):
            total = Signal(signed(config.sum_bits), name=f"sum_{g}")
            m.d.comb += total.eq(operands[g][0] + negatives[0])
            sums.append(total)
        pipe.finish(sums=sums, tag=tag)
        return m


def _add_pairs(terms: list[Value]) -> list[Value]:
    """One level of an adder tree; an odd term passes."""
    pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
    return pairs + ([terms[-1]] if len(terms) % 2 else [])
