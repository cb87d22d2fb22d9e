"""Bus master: what both masters of the KV memory share, bursts under way and the end of an error.

An error that the bus reports stops the master: `error` is set, no further burst is requested, and
later answers do not count. `cancel`, held until `idle`, waits for the bursts under way and resets
the master. Bursts are given up after `PATIENCE` cycles without an answer, counted from the cycle
in which the master's last offer was taken.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Elaboratable, Module, Mux, ResetInserter, ShapeLike, Signal, Value
from amaranth.lib.wiring import In, Member, Out

from rtl.axi import AddressChannel, Response, drive_attributes
from rtl.streams import Queue

__all__ = ["PATIENCE", "BusMaster", "ports_of_errors"]

#: Cycles without an answer after which `cancel` gives bursts up.
PATIENCE = 1 << 16


def ports_of_errors() -> dict[str, Member]:
    """Return the ports of a master for errors.

    error : Out, `rtl.axi.Response` of the first answer that was not OKAY
    cancel : In, hold until `idle`
    idle : Out, `cancel` is complete
    """
    return {"error": Out(Response), "cancel": In(1), "idle": Out(1)}


class BusMaster:
    """Frame of a master's `elaborate`: `add` parts, `ask` for bursts, and `end` the frame.

    Parameters
    ----------
    m : Module
    ports : the master, with `ports_of_errors`
    channel : address channel on which bursts are requested
    tag : layout of the tag of a burst under way
    most : most bursts that may be under way

    Attributes
    ----------
    stopped : Signal, no burst is requested, and answers do not count
    under_way : Queue of tags, the oldest burst first; the caller drives its input payload and its
        output's ready
    free : Value, `ask` may go, unless the caller has further conditions
    """

    def __init__(
        self, m: Module, ports: Any, channel: AddressChannel, tag: ShapeLike, most: int
    ) -> None:
        self._m = m
        self._ports = ports
        self._channel = channel
        drive_attributes(m, channel)
        self.stopped = Signal(name="stopped")
        m.d.comb += self.stopped.eq((ports.error != Response.OKAY) | ports.cancel)
        self.under_way = Queue(tag, most, buffered=False)
        self.add(under_way=self.under_way)
        self.free = (~channel.valid | channel.ready) & self.under_way.i.ready & ~self.stopped

    def add(self, **parts: Elaboratable) -> None:
        """Add submodules, which are reset when the master is idle."""
        for name, part in parts.items():
            self._m.submodules[name] = ResetInserter(self._ports.idle)(part)

    def ask(self, go: Value, burst: Any) -> None:
        """Request a burst (`rtl.burst_splitter.burst_layout`) in the cycle after `go`."""
        m, channel = self._m, self._channel
        m.d.comb += self.under_way.i.valid.eq(go)
        with m.If(channel.ready):
            m.d.sync += channel.valid.eq(0)
        with m.If(go):
            m.d.sync += [
                channel.valid.eq(1),
                channel.addr.eq(burst.address),
                channel.len.eq(burst.length),
            ]

    def end(self, offers: Value, answered: Value) -> None:
        """Become idle on `cancel`, when no burst is under way, or no answer came for too long.

        Parameters
        ----------
        offers : The master offers something that has not been taken.
        answered : The bus answers.
        """
        m, ports = self._m, self._ports
        quiet = Signal(range(PATIENCE), name="quiet")
        m.d.sync += quiet.eq(Mux(answered | offers | ~ports.cancel, 0, quiet + 1))
        m.d.comb += ports.idle.eq(
            ports.cancel & ~offers & (~self.under_way.o.valid | (quiet == PATIENCE - 1))
        )
        with m.If(ports.idle):
            m.d.sync += ports.error.eq(Response.OKAY)
