"""Harness with three pins around a block for place and route.

An engine has more port bits than an FPGA has pins. One shift register drives all inputs, and every
output bit goes into its own flip-flop, which no tool may remove. So all logic stays, and each path
of the block starts and ends at a flip-flop. The harness consists of one flip-flop per port bit.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Elaboratable, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["Harness"]


class Harness(wiring.Component):
    """A block with its ports behind flip-flops.

    Parameters
    ----------
    block : the component; its clock domain is "sync"

    Attributes
    ----------
    serial : In(1)
        Bit that is shifted into the shift register in each cycle.
    """

    def __init__(self, block: wiring.Component) -> None:
        super().__init__({"serial": In(1)})
        self._block = block
        ports = list(block.signature.flatten(block))
        self._inputs = [Value.cast(port) for _, member, port in ports if member.flow is In]
        self._outputs = [Value.cast(port) for _, member, port in ports if member.flow is not In]

    @property
    def flip_flops(self) -> int:
        """Flip-flops of the harness itself."""
        return sum(map(len, (*self._inputs, *self._outputs)))

    def elaborate(self, platform: object) -> Elaboratable:
        m = Module()
        m.submodules.block = self._block
        inputs = Cat(*self._inputs)
        shifted = Signal(len(inputs), reset_less=True)
        m.d.sync += shifted.eq(Cat(self.serial, shifted))
        m.d.comb += inputs.eq(shifted)
        captured = Signal(sum(map(len, self._outputs)), reset_less=True, attrs={"keep": "1"})
        m.d.sync += captured.eq(Cat(*self._outputs))
        return m
