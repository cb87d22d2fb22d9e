"""The answering side of a block's table read ports, for benches of the block alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cocotb
from amaranth.lib.wiring import Flow
from cocotb.triggers import RisingEdge
from cocotb.types import LogicArray

from golden.feedback import Feedback
from golden.tables import factor_words
from sim.bench.bench import Bench
from sim.bench.streams import Payload, packer

__all__ = ["answer_factors", "answer_reads"]


def answer_reads(
    bench: Bench, port: str, answer: Callable[[Mapping[str, int]], Mapping[str, Payload]]
) -> None:
    """Answer a read port of the block one cycle after each address, for the rest of the test.

    Parameters
    ----------
    answer : maps the fields of an address to the fields of the answer
    """
    members = bench.component.signature.members[port].signature.members
    # a field without bits has no port
    addresses = {
        name: getattr(bench.dut, f"{port}__{name}", None)
        for name, member in members.items()
        if member.flow is Flow.Out
    }
    answers = {
        name: (bench.dut[f"{port}__{name}"], packer(member.shape))
        for name, member in members.items()
        if member.flow is Flow.In
    }

    async def run() -> None:
        edge = RisingEdge(bench.dut.clk)
        while True:
            await edge
            address = {
                name: int(handle.value) if handle is not None and handle.value.is_resolvable else 0
                for name, handle in addresses.items()
            }
            for name, payload in answer(address).items():
                handle, pack = answers[name]
                handle.value = LogicArray(pack(payload), len(handle))

    cocotb.start_soon(run())


def answer_factors(bench: Bench, feedback: Feedback) -> None:
    """Answer port `factors` from the feedback matrices of all heads."""
    words = factor_words(bench.config, feedback.factors).tolist()
    shifts = feedback.shift.tolist()

    def answer(address: Mapping[str, int]) -> Mapping[str, Payload]:
        table = address["table"] % len(words)  # before the first vector it is anything
        word = min(address["word"], len(words[table]) - 1)  # one behind the last is asked for too
        return {"factors": words[table][word], "shift": shifts[table][address["row"]]}

    answer_reads(bench, "factors", answer)
