"""Bench of the tables: all readers read the loaded contents at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject
from cocotb.triggers import RisingEdge

from golden.feedback import Feedback
from golden.tables import factor_words, load_words
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.vector_code import random_matrices

READERS = {
    "centres": ("table", "element"),
    "key_factors": ("table", "word", "row"),
    "value_factors": ("table", "word", "row"),
}


def payloads(packets: list[list[int]]) -> list[dict[str, int]]:
    """Return packets of words as transfers."""
    return [{"first": n == 0, "data": word} for packet in packets for n, word in enumerate(packet)]


def contents(centres: torch.Tensor, feedback: dict[str, Feedback], bench: Bench) -> dict[str, Any]:
    """Return the expected contents for each reader, as nested lists."""
    found: dict[str, Any] = {"centres": centres.tolist()}
    for port, matrices in feedback.items():
        words = factor_words(bench.config, matrices.factors).tolist()
        found[port] = words, matrices.shift.tolist()
    return found


def address(bench: Bench, port: str, fields: dict[str, int]) -> None:
    """Set the address of a reader; a field of zero bits has no port."""
    for name, value in fields.items():
        handle = getattr(bench.dut, f"{port}__{name}", None)
        if handle is not None:
            handle.value = value


def signed(handle: Any, width: int, count: int) -> list[int]:
    """Unpack signed numbers of `width` bits from an answer."""
    bits = int(handle.value)
    numbers = [bits >> width * n & ((1 << width) - 1) for n in range(count)]
    return [n - ((n >> width - 1) << width) for n in numbers]


async def read_all(bench: Bench, expected: dict[str, Any], times: int) -> None:
    """Check random reads on all ports, with a new address in every cycle."""
    config, dut, rng = bench.config, bench.dut, bench.rng
    edge = RisingEdge(dut.clk)
    limits = {
        "table": config.table_heads,
        "element": config.head_dim,
        "row": config.head_dim,
        "word": config.feedback_words,
    }
    asked: dict[str, dict[str, int]] = {}
    for _ in range(times):
        before = asked
        asked = {
            port: {name: int(rng.integers(limits[name])) for name in names}
            for port, names in READERS.items()
        }
        for port, fields in asked.items():
            address(bench, port, fields)
        await edge
        for port, fields in before.items():
            table = fields["table"]
            if port == "centres":
                found = signed(dut.centres__value, 16, 1)[0]
                bench.check(found, expected[port][table][fields["element"]], f"{port} {fields}")
                continue
            words, shifts = expected[port]
            found_word = signed(dut[f"{port}__factors"], 4, config.feedback_lanes)
            bench.check(found_word, words[table][fields["word"]], f"{port} {fields}")
            found = int(dut[f"{port}__shift"].value)
            bench.check(found, shifts[table][fields["row"]], f"{port} {fields}")


def loading(
    bench: Bench, centres: torch.Tensor, feedback: dict[str, Feedback], first_head: int = 0
) -> Iterator[list[int]]:
    """Return packets that load these centres and feedback matrices."""
    matrices = feedback["key_factors"], feedback["value_factors"]
    return load_words(bench.config, centres, *matrices, first_head)


async def load(bench: Bench, packets: list[list[int]], source: str) -> None:
    """Send packets, at one word per cycle if the source has no gaps."""
    bench.drive("load", payloads(packets), source)
    words = sum(map(len, packets))
    while len(bench.drivers["load"].cycles) < words:
        await RisingEdge(bench.dut.clk)
    await RisingEdge(bench.dut.clk)


def random_contents(bench: Bench) -> tuple[torch.Tensor, dict[str, Feedback]]:
    """Draw centres and feedback matrices of all heads."""
    config, rng = bench.config, bench.rng
    centres = torch.from_numpy(
        rng.integers(-(1 << 15), 1 << 15, (config.table_heads, config.head_dim))
    )
    return centres, {
        "key_factors": random_matrices(rng, config),
        "value_factors": random_matrices(rng, config),
    }


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES)
async def all_at_once(dut: HierarchyObject, source: str) -> None:
    """Load one packet per section for all heads."""
    bench = await Bench.start(dut, "tables")
    centres, feedback = random_contents(bench)
    packets = list(loading(bench, centres, feedback))
    await load(bench, packets, source)
    if source == "none":
        cycles = bench.drivers["load"].cycles
        bench.check(cycles, list(range(cycles[0], cycles[0] + len(cycles))), "cycles of the words")
    await read_all(bench, contents(centres, feedback, bench), 400)


@cocotb.test()
async def head_by_head(dut: HierarchyObject) -> None:
    """Load heads and sections in any order, one packet each, over earlier contents."""
    bench = await Bench.start(dut, "tables")
    old, new = random_contents(bench), random_contents(bench)
    packets = list(loading(bench, *old))
    later = []
    for head in range(bench.config.table_heads):
        own = slice(head, head + 1)
        of_head = {port: Feedback(f.factors[own], f.shift[own]) for port, f in new[1].items()}
        later += list(loading(bench, new[0][own], of_head, head))
    packets += [later[n] for n in bench.rng.permutation(len(later))]
    await load(bench, packets, "none")
    await read_all(bench, contents(*new, bench), 400)


@cocotb.test()
async def nonsense_is_ignored(dut: HierarchyObject) -> None:
    """Check that words past the last head, unknown sections and unknown heads change nothing."""
    bench = await Bench.start(dut, "tables")
    config = bench.config
    centres, feedback = random_contents(bench)
    packets = list(loading(bench, centres, feedback))
    garbage = bench.rng.integers(0, 1 << 32, 3000, dtype=np.int64).tolist()
    for packet in packets:
        packet.extend(garbage)
    for section in range(8):
        for head in (config.table_heads, 1 << 20, (1 << 29) - 1):
            packets.append([section | head << 3, *garbage[:50]])
    packets += [[section, *garbage[:50]] for section in (5, 6, 7)]
    await load(bench, packets, "none")
    await read_all(bench, contents(centres, feedback, bench), 400)
