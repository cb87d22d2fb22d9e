"""Burst splitter: splits requests of any number of words into AXI bursts."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from kvtq_hw.contract.config import EngineConfig

__all__ = ["BurstSplitter", "burst_layout", "request_layout"]

_PAGE_BYTES = 4096  # no burst crosses a page
_LONGEST = 256


def request_layout(config: EngineConfig, most: int) -> data.StructLayout:
    """Return the layout of a request for consecutive words: their number, and the first address.

    The address's byte within the word is ignored.
    """
    return data.StructLayout({"address": unsigned(config.address_bits), "words": range(most + 1)})


def burst_layout(config: EngineConfig) -> data.StructLayout:
    """Return the layout of an INCR burst: first address, beats - 1, and end of the request."""
    return data.StructLayout(
        {"address": unsigned(config.address_bits), "length": unsigned(8), "last": 1}
    )


class BurstSplitter(wiring.Component):
    """Splits requests at pages of 4 KiB and at the longest burst.

    A request of n bursts takes n + 1 cycles.

    Parameters
    ----------
    most : words of the longest request
    longest : beats of the longest burst, a power of two, limited to AXI's 256

    Attributes
    ----------
    requests : stream In, `request_layout`, of at least one word
    bursts : stream Out, `burst_layout`
    """

    def __init__(self, config: EngineConfig, most: int, longest: int = _LONGEST) -> None:
        self._config = config
        self._longest = min(longest, _LONGEST)
        super().__init__(
            {
                "requests": In(stream.Signature(request_layout(config, most))),
                "bursts": Out(stream.Signature(burst_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = self._config.memory_bits // 8
        shift = word.bit_length() - 1
        page = _PAGE_BYTES // word
        request, burst = self.requests.payload, self.bursts.payload

        address = Signal(self._config.address_bits - shift, reset_less=True)  # in words
        words = Signal.like(request.words, reset_less=True)
        to_page_end = page - address[: page.bit_length() - 1]
        limit = Signal(range(self._longest + 1))
        beats = Signal(range(self._longest + 1))
        last = Signal()
        m.d.comb += [
            limit.eq(Mux(to_page_end < self._longest, to_page_end, self._longest)),
            beats.eq(Mux(words < limit, words, limit)),
            last.eq(words == beats),
            burst.last.eq(last),
            burst.address.eq(address << shift),
            burst.length.eq((beats - 1)[: len(beats)]),
        ]
        with m.If(~self.bursts.valid):
            m.d.comb += self.requests.ready.eq(1)
            m.d.sync += [
                address.eq(request.address[shift:]),
                words.eq(request.words),
                self.bursts.valid.eq(self.requests.valid),
            ]
        with m.Elif(self.bursts.ready):
            m.d.sync += [
                address.eq(address + beats),
                words.eq(words - beats),
                self.bursts.valid.eq(~last),
            ]
        return m
