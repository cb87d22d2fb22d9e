"""Common parts of the record reader's and writer's benches: pauses, `cancel`, and episodes.

An episode is some work of a memory master that ends at any time: the work is done, the bus reports
an error, or the master is cancelled or reset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Literal

from cocotb.triggers import ClockCycles, RisingEdge

from sim.bench.axi_rules import AxiRules
from sim.bench.bench import Bench
from sim.bench.coverage import Coverage
from sim.bench.scoreboard import Mismatch
from sim.bench.streams import stall_pattern

__all__ = ["Channel", "Episode", "cancel", "check_silence", "pause_channels"]

#: The address channel of a master.
Channel = Literal["ar", "aw"]

_PATIENCE = 3000  # most cycles of a `cancel`
_WATCHED = 80  # cycles watched after all work is done, in which nothing may come
_LONGEST = 60_000  # most cycles of an episode


def pause_channels(bench: Bench, channels: Iterable[Any], mix: str) -> None:
    """Let channels of cocotbext-axi's memory pause by stall patterns of a mix."""
    for channel in channels:
        if mix != "none":
            pattern = stall_pattern(bench.stalls(mix), bench.rng.spawn(1)[0])
            channel.set_pause_generator(not go for go in pattern)


def _address_taken(bench: Bench, channel: Channel) -> bool:
    """Return whether an address is taken in this cycle."""
    valid, ready = (bench.dut[f"m_axi_{channel}{name}"].value for name in ("valid", "ready"))
    return int(valid) == 1 and int(ready) == 1


async def check_silence(bench: Bench, channel: Channel, cycles: int) -> None:
    """Check that after an error no address is sent but the one offered before the error."""
    asked = 0
    for _ in range(cycles):
        await RisingEdge(bench.dut.clk)
        asked += _address_taken(bench, channel)
    bench.check(asked <= 1, True, "only the address that was offered before the error")


async def cancel(bench: Bench, channel: Channel, look: Callable[[], None] = lambda: None) -> None:
    """Withdraw all inputs, and hold `cancel` until the master is idle.

    Parameters
    ----------
    look : called in each cycle of `cancel`
    """
    dut, asked = bench.dut, 0
    bench.withdraw()
    dut.cancel.value = 1
    for _ in range(_PATIENCE):
        await RisingEdge(dut.clk)
        asked += _address_taken(bench, channel)
        look()
        if dut.idle.value == 1:
            break
    else:
        raise Mismatch(f"not idle within {_PATIENCE} cycles of cancel")
    bench.check(asked <= 1, True, "only the address that was offered before cancel")
    dut.cancel.value = 0
    await ClockCycles(dut.clk, 2)
    bench.check(int(dut.error.value), 0, "error after cancel")


class Episode(ABC):
    """Work of a memory master that ends at any time.

    Parameters
    ----------
    coverage : coverage with the points "ending" and "under_way"
    errors : expected value of `error`, by ending, for endings that are bus errors
    ending : the planned ending: one of `errors`, "cancel", "reset" or "well"

    Attributes
    ----------
    ending : the actual ending: "well" if all work was done before the planned ending
    """

    def __init__(
        self,
        bench: Bench,
        channel: Channel,
        coverage: Coverage,
        errors: dict[str, int],
        ending: str,
    ) -> None:
        self.bench, self.dut, self.ending = bench, bench.dut, ending
        self._channel = channel
        self._coverage = coverage
        self._errors = errors

    @property
    def rules(self) -> AxiRules:
        """Return the rules that are checked on the bus."""
        rules = self.bench.buses["m_axi"]
        assert isinstance(rules, AxiRules)
        return rules

    @abstractmethod
    def look(self) -> bool:
        """Check the outputs of a cycle; return whether all work has been done."""

    @abstractmethod
    def met(self) -> dict[str, bool]:
        """Return the states that a cancel or reset would meet now, by the bins of the coverage."""

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel the master's work."""

    async def play(self, moment: int, meets: str) -> None:
        """Run cycles until the episode ends.

        Parameters
        ----------
        moment : latest cycle of a cancel or reset
        meets : a key of `met`; a cancel or reset comes as soon as this state is met
        """
        edge, left = RisingEdge(self.dut.clk), _WATCHED
        for cycle in range(_LONGEST):
            await edge
            done = self.look()
            if self.ending in ("cancel", "reset") and (cycle == moment or self.met()[meets]):
                return
            if int(self.dut.error.value):
                return
            left -= done
            if not left:
                self.ending = "well"
                return
        raise Mismatch(f"an episode that ends {self.ending} does not end")

    async def abort(self, watched: int) -> None:
        """Check the design's behaviour after an error, a cancel or a reset.

        Parameters
        ----------
        watched : upper limit of the cycles between an error and `cancel`
        """
        bench, dut, rules, ending = self.bench, self.dut, self.rules, self.ending
        if ending in self._errors:
            code = self._errors[ending]
            bench.check(int(dut.error.value), code, f"error after {ending}")
            await check_silence(bench, self._channel, int(bench.rng.integers(watched)))
            bench.check(int(dut.error.value), code, "error: the first one counts")
            found = {violation.rule for violation in rules.found}
            bench.check(found, rules.tolerated, f"rules that the memory broke by {ending}")
        else:
            bench.check(int(dut.error.value), 0, "error without one")
            for name in [name for name, holds in self.met().items() if holds] or ["nothing"]:
                self._coverage.sample(under_way=name)
        if ending == "reset":
            await bench.reset(int(bench.rng.integers(1, 3)))
        else:
            await self.cancel()
        rules.found.clear()
        rules.tolerated = set()
