"""Record bytes: computes the size of a number of records without a multiplier."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.packing import vector_bytes
from rtl.memory_layouts import largest_record_bytes

__all__ = ["RecordBytes"]


class RecordBytes(wiring.Component):
    """Compute ``count * bytes per record`` by shifts and adds, one bit of the count per cycle.

    Takes 1 + bit_length(count) cycles from `start` to `done`.

    Parameters
    ----------
    most : largest count

    Attributes
    ----------
    start : In, pulse: take the inputs
    planes, residual : In, format of a record
    count : In, number of records
    bytes : Out, bytes of the records, held until the next `start`
    done : Out, `bytes` is valid
    """

    def __init__(self, config: EngineConfig, most: int) -> None:
        self._config = config
        self._most = most
        super().__init__(
            {
                "start": In(1),
                "planes": In(range(config.max_planes + 1)),
                "residual": In(1),
                "count": In(range(most + 1)),
                "bytes": Out(range(most * largest_record_bytes(config) + 1)),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        sizes = [
            Array(
                vector_bytes(config, planes, planes if residual else 1) if planes else 0
                for planes in range(config.max_planes + 1)
            )
            for residual in (False, True)
        ]
        count = Signal.like(self.count, reset_less=True)
        size = Signal.like(self.bytes, reset_less=True)
        idle = Signal(init=1)
        m.d.comb += self.done.eq(idle & ~self.start)
        with m.If(self.start):
            m.d.sync += [
                idle.eq(0),
                count.eq(self.count),
                size.eq(Mux(self.residual, sizes[1][self.planes], sizes[0][self.planes])),
                self.bytes.eq(0),
            ]
        with m.Elif(count == 0):
            m.d.sync += idle.eq(1)
        with m.Else():
            m.d.sync += [
                count.eq(count >> 1),
                size.eq(size << 1),
                self.bytes.eq(self.bytes + Mux(count[0], size, 0)),
            ]
        return m
