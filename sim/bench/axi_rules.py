"""Rules of AXI4, AXI4-Lite (ARM IHI 0022) and AXI4-Stream (IHI 0051), for a monitor on a bus.

The rules take one sample per clock edge from any source, so they need no simulator. They watch both
sides of a bus, so they detect rules broken by a memory model as well as by a design.
`sim.bench.axi_checker` feeds the samples from cocotb.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

__all__ = ["AxiError", "AxiRules", "BusRules", "Rule", "Sample", "StreamRules", "Violation"]

#: Function from a signal's name, such as "awvalid", to its value at the clock edge: a number, or
#: text if not every bit is 0 or 1.
Sample = Callable[[str], int | str]

PAGE_BYTES = 4096
#: Cycles after which a side that could offer, but does not while its partner is not ready, counts
#: as waiting for READY. No agent of the benches pauses for as long.
PATIENCE = 256

_EXOKAY = 1
_FIXED, _INCR, _WRAP = range(3)
_ADDRESS = ("id", "addr", "len", "size", "burst", "lock", "cache", "prot", "qos")
_RESERVED_CACHE = {0b0100, 0b0101, 0b1000, 0b1001, 0b1100, 0b1101}


class Rule(Enum):
    """A rule, as a sentence with the sections of the specification that require it."""

    KNOWN = "VALID is 0 or 1, and so are READY and what is offered (IHI 0022 A3.2.1)"
    RESET = "VALID is low in reset and until the first edge after it (A3.1.2; IHI 0051 2.7.2)"
    VALID_STAYS = "VALID stays until READY (A3.2.1; IHI 0051 2.2.1)"
    PAYLOAD_STAYS = "what is offered stays until READY (A3.2.1; IHI 0051 2.2.1)"
    BURST = "AxBURST is FIXED, INCR or WRAP (A3.4.1)"
    LENGTH = "FIXED bursts have up to 16 beats, WRAP 2, 4, 8 or 16 (A3.4.1)"
    SIZE = "AxSIZE is at most the width of the bus (A3.4.1)"
    ALIGNED = "WRAP bursts start at a multiple of their beats' size (A3.4.1)"
    PAGE = "no burst crosses a boundary of 4 KiB (A3.4.1)"
    CACHE = "AxCACHE is no reserved code (A4.4)"
    WLAST = "WLAST is high at the last beat and at no other (A3.2.2)"
    STROBES = "WSTRB is low outside a beat's bytes (A3.4.3)"
    RLAST = "RLAST is high at the last beat and at no other (A3.2.2)"
    EXOKAY = "EXOKAY answers exclusive accesses alone, none on AXI4-Lite (A3.4.4, B1.1.1)"
    READ_UNASKED = "RVALID comes after its address was taken (A3.3.1)"
    WRITE_UNASKED = "BVALID comes after its address and its last word were taken (A3.3.1)"
    OUTSTANDING = "no more transactions are under way than the port says"
    WAITING = "VALID does not wait for a READY (A3.3.1)"
    TLAST = "TLAST is high at the last beat of a packet and at no other (IHI 0051 2.5)"


@dataclass(frozen=True)
class Violation:
    """A broken rule, with the channel and the observation."""

    rule: Rule
    channel: str
    seen: str


class AxiError(AssertionError):
    """Raised when a bus breaks a rule.

    Parameters
    ----------
    violation : Violation
    where : port and time, the prefix of the message
    """

    def __init__(self, violation: Violation, where: str = "") -> None:
        place = f"{where}, {violation.channel}" if where else violation.channel
        super().__init__(f"{place}: {violation.seen}; rule: {violation.rule.value}")
        self.violation = violation


class BusRules:
    """Checks the rules of every channel in every protocol.

    Parameters
    ----------
    channels : names of payload signals, without prefix, by channel prefix ("aw", "t")

    Attributes
    ----------
    tolerated : rules that a test breaks on purpose; all others raise
    found : tolerated violations, in order
    events : counts of events for a bench, by name: "b stalls" counts cycles in which BVALID waited
    """

    def __init__(self, channels: Mapping[str, tuple[str, ...]]) -> None:
        self._channels = dict(channels)
        self._offered: dict[str, dict[str, int | str]] = {}
        self._resets = 0  # consecutive edges in reset
        self.tolerated: set[Rule] = set()
        self.found: list[Violation] = []
        self.events: dict[str, int] = {}

    def step(self, read: Sample, reset: bool = False) -> None:
        """Check one clock edge.

        Raises
        ------
        AxiError
            When a rule is broken that is not in `tolerated`.
        """
        if reset:
            self._resets += 1
            if self._resets == 1:  # reset takes effect after this edge
                return
        if self._resets:
            for channel in self._channels:
                if read(f"{channel}valid") != 0:
                    self._fail(Rule.RESET, channel, "VALID is not low")
            if not reset:
                self._resets = 0
                self.forget()
            return
        moved = {}
        for channel in self._channels:
            payload = self._handshake(channel, read)
            if payload is not None:
                moved[channel] = payload
        self._transfers(moved, read)

    def forget(self) -> None:
        """Forget all offers and transactions in progress."""
        self._offered.clear()

    def _handshake(self, channel: str, read: Sample) -> dict[str, int | str] | None:
        """Check a channel's handshake; return the payload of a transfer at this edge, if any."""
        valid = read(f"{channel}valid")
        if valid not in (0, 1):
            self._fail(Rule.KNOWN, channel, f"VALID is {valid}")
            return None
        before = self._offered.pop(channel, None)
        if not valid:
            if before is not None:
                self._fail(Rule.VALID_STAYS, channel, "VALID fell before the transfer")
            return None
        payload = {name: read(f"{channel}{name}") for name in self._channels[channel]}
        if before is None:
            for name, value in payload.items():
                if isinstance(value, str) and name != "data":
                    self._fail(Rule.KNOWN, channel, f"{name} is {value}")
                    return None
            self._offers(channel, payload)
        elif payload != before:
            changed = [name for name in payload if payload[name] != before[name]]
            self._fail(Rule.PAYLOAD_STAYS, channel, f"{', '.join(changed)} changed")
        ready = read(f"{channel}ready")
        if ready not in (0, 1):
            self._fail(Rule.KNOWN, channel, f"READY is {ready}")
        if ready == 1:
            return payload
        self._count(f"{channel} stalls")
        self._offered[channel] = payload
        return None

    def _offers(self, channel: str, payload: Mapping[str, int | str]) -> None:
        """Check a payload that is offered for the first time."""

    def _transfers(self, moved: Mapping[str, Mapping[str, int | str]], read: Sample) -> None:
        """Check the payloads that were taken at this edge."""

    def _fail(self, rule: Rule, channel: str, seen: str) -> None:
        violation = Violation(rule, channel, seen)
        if rule not in self.tolerated:
            raise AxiError(violation)
        self.found.append(violation)

    def _count(self, event: str) -> None:
        self.events[event] = self.events.get(event, 0) + 1


class StreamRules(BusRules):
    """Checks the rules of AXI4-Stream.

    Parameters
    ----------
    user : whether the port has TUSER
    beats : beats per packet, if the port fixes the length
    """

    def __init__(self, *, user: bool = False, beats: int | None = None) -> None:
        super().__init__({"t": ("data", "last", "user") if user else ("data", "last")})
        self._beats = beats
        self._beat = 0

    def forget(self) -> None:
        super().forget()
        self._beat = 0

    def _transfers(self, moved: Mapping[str, Mapping[str, int | str]], read: Sample) -> None:
        if "t" not in moved:
            return
        self._beat += 1
        last = moved["t"]["last"] == 1
        if self._beats is not None and last != (self._beat == self._beats):
            self._fail(Rule.TLAST, "t", f"TLAST is {int(last)} at beat {self._beat}")
        if last:
            self._beat = 0


@dataclass
class _Burst:
    """A transaction: the fields of its address channel, and the beats that have come."""

    address: int
    beats: int = 1
    size: int = 0
    kind: int = _INCR
    exclusive: bool = False
    come: int = 0
    complete: bool = False  # the last word of a write was taken

    def lanes(self, place: int, word: int) -> int:
        """Return a mask of a beat's byte lanes on a bus of `word` bytes (A3.4.1, A3.4.3)."""
        step = 1 << self.size
        start = self.address
        if place and self.kind != _FIXED:
            start = self.address // step * step + place * step
            if self.kind == _WRAP:
                whole = self.beats * step
                lower = self.address // whole * whole
                start = lower + (start - lower) % whole
        end = start // step * step + step
        low = start % word
        return ((1 << (end - start)) - 1) << low


class AxiRules(BusRules):
    """Checks the rules of AXI4 or AXI4-Lite, for the halves that the port has.

    Parameters
    ----------
    halves : "r", "w" or "rw"
    word : bytes per data word
    lite : AXI4-Lite instead of AXI4
    reads, writes : most outstanding transactions
    patience : see `PATIENCE`
    """

    def __init__(
        self,
        halves: str,
        word: int,
        *,
        lite: bool = False,
        reads: int,
        writes: int,
        patience: int = PATIENCE,
    ) -> None:
        address = ("addr", "prot") if lite else _ADDRESS
        channels: dict[str, tuple[str, ...]] = {}
        if "w" in halves:
            channels["aw"] = address
            channels["w"] = ("data", "strb") if lite else ("data", "strb", "last")
            channels["b"] = ("resp",) if lite else ("id", "resp")
        if "r" in halves:
            channels["ar"] = address
            channels["r"] = ("data", "resp") if lite else ("id", "data", "resp", "last")
        super().__init__(channels)
        self._word = word
        self._lite = lite
        self._limits = {"ar": reads, "aw": writes}
        self._patience = patience
        self._waits = dict.fromkeys(("aw", "w", "b", "r"), 0)
        self._reads: dict[int, deque[_Burst]] = {}
        self._writes: dict[int, deque[_Burst]] = {}  # unanswered writes
        self._open: deque[_Burst] = deque()  # writes whose words have not all been taken
        self._ahead: list[tuple[int, int]] = []  # strobes and WLAST of words ahead of their address

    def forget(self) -> None:
        super().forget()
        for state in (self._reads, self._writes, self._open, self._ahead):
            state.clear()
        self._waits = dict.fromkeys(self._waits, 0)

    @property
    def reads_under_way(self) -> int:
        """Return the number of reads whose address was taken, but not yet their last word."""
        return sum(map(len, self._reads.values()))

    @property
    def writes_under_way(self) -> int:
        """Return the number of writes whose address was taken and that are not answered."""
        return sum(map(len, self._writes.values()))

    # --- offers -----------------------------------------------------------------------------------

    def _offers(self, channel: str, payload: Mapping[str, int | str]) -> None:
        if channel in ("ar", "aw"):
            self._check_address(channel, _numbers(payload))
        elif channel == "r":
            burst = self._oldest(self._reads, payload)
            if burst is None:
                self._fail(Rule.READ_UNASKED, "r", f"a word for no address{_of(payload)}")
            self._check_response("r", payload, burst)
        elif channel == "b":
            burst = self._oldest(self._writes, payload)
            if burst is None or not burst.complete:
                self._fail(Rule.WRITE_UNASKED, "b", f"an answer to nothing complete{_of(payload)}")
            self._check_response("b", payload, burst)

    def _check_address(self, channel: str, address: Mapping[str, int]) -> None:
        if self._lite:
            return
        burst = _burst(address)
        step = 1 << burst.size
        if burst.kind > _WRAP:
            self._fail(Rule.BURST, channel, f"AxBURST is {burst.kind}")
        allowed = {_FIXED: range(1, 17), _INCR: range(1, 257), _WRAP: (2, 4, 8, 16)}
        if burst.beats not in allowed.get(burst.kind, range(1, 257)):
            self._fail(Rule.LENGTH, channel, f"{burst.beats} beats")
        if step > self._word:
            self._fail(Rule.SIZE, channel, f"beats of {step} bytes")
        if burst.kind == _WRAP and burst.address % step:
            self._fail(Rule.ALIGNED, channel, f"a burst that wraps from {burst.address:#x}")
        if address["cache"] in _RESERVED_CACHE:
            self._fail(Rule.CACHE, channel, f"AxCACHE is {address['cache']:#06b}")
        end = burst.address // step * step + burst.beats * step
        if burst.kind == _INCR:
            if burst.address // PAGE_BYTES != (end - 1) // PAGE_BYTES:
                self._fail(Rule.PAGE, channel, f"{burst.beats} beats from {burst.address:#x}")
            elif end % PAGE_BYTES == 0:
                self._count(f"{channel} ends a page")

    def _check_response(
        self, channel: str, payload: Mapping[str, int | str], burst: _Burst | None
    ) -> None:
        exclusive = burst is not None and burst.exclusive
        if payload["resp"] == _EXOKAY and not exclusive:
            self._fail(Rule.EXOKAY, channel, "EXOKAY")
        if payload["resp"] != 0:
            self._count(f"{channel} error")

    # --- transfers: answers first, because each comes after the transfer that it answers ----------

    def _transfers(self, moved: Mapping[str, Mapping[str, int | str]], read: Sample) -> None:
        if "r" in moved:
            self._take_word(moved["r"])
        if "b" in moved:
            burst = self._oldest(self._writes, moved["b"])
            if burst is not None and burst.complete:
                self._writes[_id(moved["b"])].popleft()
        for channel, waiting in (("aw", self._writes), ("ar", self._reads)):
            if channel in moved:
                self._take_address(channel, moved[channel], waiting)
        if "w" in moved:
            strobes, last = moved["w"]["strb"], moved["w"].get("last", 1)
            assert isinstance(strobes, int) and isinstance(last, int)
            self._ahead.append((strobes, last))
        self._match_words()
        self._check_waiting(read)

    def _take_address(
        self, channel: str, payload: Mapping[str, int | str], waiting: dict[int, deque[_Burst]]
    ) -> None:
        burst = _burst(_numbers(payload))
        waiting.setdefault(_id(payload), deque()).append(burst)
        if channel == "aw":
            self._open.append(burst)
        under_way = sum(map(len, waiting.values()))
        if under_way > self._limits[channel]:
            self._fail(Rule.OUTSTANDING, channel, f"{under_way} are under way")
        if under_way == self._limits[channel]:
            self._count(f"{channel} full")

    def _take_word(self, payload: Mapping[str, int | str]) -> None:
        burst = self._oldest(self._reads, payload)
        if burst is None:
            return
        burst.come += 1
        last = payload.get("last", 1) == 1
        if last != (burst.come == burst.beats):
            seen = f"RLAST is {int(last)} at beat {burst.come} of {burst.beats}"
            self._fail(Rule.RLAST, "r", seen)
        if last:
            self._reads[_id(payload)].popleft()

    def _match_words(self) -> None:
        """Assign words to the oldest writes whose address was taken."""
        while self._ahead and self._open:
            burst = self._open[0]
            strobes, last = self._ahead.pop(0)
            if burst.come < burst.beats and not self._lite:
                outside = strobes & ~burst.lanes(burst.come, self._word)
                if outside:
                    self._fail(Rule.STROBES, "w", f"WSTRB has {outside:#x} outside its beat")
            burst.come += 1
            if last != (burst.come == burst.beats):
                seen = f"WLAST is {last} at beat {burst.come} of {burst.beats}"
                self._fail(Rule.WLAST, "w", seen)
            if last:
                burst.complete = True
                self._open.popleft()

    def _check_waiting(self, read: Sample) -> None:
        """Check for sides that could offer, but wait for their partner's READY."""
        words_offered = "w" in self._offered or bool(self._ahead)
        waiting = {
            # an address is offered without any of its words, or a word without its address
            "aw": "aw" in self._offered and not self._open and not words_offered,
            "w": "w" in self._offered and not self._open and "aw" not in self._offered,
            "b": self._answerable(self._writes, "b") and read("bready") == 0,
            "r": self._answerable(self._reads, "r") and read("rready") == 0,
        }
        for channel, waits in waiting.items():
            self._waits[channel] = self._waits[channel] + 1 if waits else 0
            if self._waits[channel] > self._patience:
                self._waits[channel] = 0
                what = {"aw": "no WVALID before AWREADY", "w": "no AWVALID before WREADY"}
                seen = what.get(channel, f"no {channel.upper()}VALID before its READY")
                self._fail(Rule.WAITING, channel, seen)

    def _answerable(self, waiting: Mapping[int, deque[_Burst]], channel: str) -> bool:
        """Return whether an answer could be offered and is not."""
        if channel in self._offered:
            return False
        return any(bursts and (channel == "r" or bursts[0].complete) for bursts in waiting.values())

    @staticmethod
    def _oldest(
        waiting: Mapping[int, deque[_Burst]], payload: Mapping[str, int | str]
    ) -> _Burst | None:
        """Return the transaction of an answer: the oldest one of its identifier (A5.3)."""
        bursts = waiting.get(_id(payload))
        return bursts[0] if bursts else None


def _burst(address: Mapping[str, int]) -> _Burst:
    return _Burst(
        address=address["addr"],
        beats=address.get("len", 0) + 1,
        size=address.get("size", 0),
        kind=address.get("burst", _INCR),
        exclusive=address.get("lock", 0) == 1,
    )


def _numbers(payload: Mapping[str, int | str]) -> dict[str, int]:
    return {name: value for name, value in payload.items() if isinstance(value, int)}


def _id(payload: Mapping[str, int | str]) -> int:
    identifier = payload.get("id", 0)
    return identifier if isinstance(identifier, int) else 0


def _of(payload: Mapping[str, int | str]) -> str:
    return f" of identifier {payload['id']}" if "id" in payload else ""
