"""Bench of the record unpacker: pieces of every kind at every offset, all stalls, throughput."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.handle import HierarchyObject

from kvtq_hw.contract.layout import SIDES
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.records import Records, random_records


def random_piece(bench: Bench) -> Records:
    """Draw a piece of any kind."""
    rng, config = bench.rng, bench.config
    count = int(rng.choice([1, 2, config.block - 1, config.block]))
    planes = int(rng.integers(1, config.max_planes + 1))
    return random_records(rng, config, SIDES[rng.integers(2)], count, planes, bool(rng.integers(2)))


def words_of(bench: Bench, piece: Records, offset: int) -> tuple[dict[str, int], list[Any]]:
    """Return a piece's payload, and its words with other bytes around the piece."""
    size = bench.config.memory_bits // 8
    used = offset + piece.data.size
    data = bench.rng.integers(0, 256, -(-used // size) * size).astype(np.uint8)
    data[offset:used] = piece.data.ravel()
    words = [{"data": int.from_bytes(row.tobytes(), "little")} for row in data.reshape(-1, size)]
    payload = {
        "offset": offset,
        "last_byte": used - 1,
        "records": len(piece),
        "planes": piece.planes,
        "residual": int(piece.residual),
        "value": int(piece.side == "value"),
    }
    return payload, words


async def run(
    bench: Bench,
    pieces: list[Records],
    offsets: list[int],
    mixes: tuple[str, str] = ("none", "none"),
) -> None:
    """Unpack pieces one after the other and compare the slices with those of the vectors."""
    source, sink = mixes
    payloads, words = [], []
    for piece, offset in zip(pieces, offsets, strict=True):
        payload, of_piece = words_of(bench, piece, offset)
        payloads.append(payload)
        words += of_piece
    bench.drive("pieces", payloads, source)
    bench.drive("words", words, source)
    for side, port in zip(SIDES, ("keys", "values"), strict=True):
        slices = [s for piece in pieces if piece.side == side for s in piece.slices(bench.config)]
        bench.expect(port, slices, sink)
    await bench.finish()


def slice_cycles(bench: Bench) -> list[int]:
    """Return the cycles of all key and value slices."""
    return sorted(bench.sinks["keys"].cycles + bench.sinks["values"].cycles)


@cocotb.test()
async def every_offset(dut: HierarchyObject) -> None:
    """Check each format at each offset in a word."""
    bench = await Bench.start(dut, "record_unpacker")
    config = bench.config
    pieces, offsets = [], []
    for offset in range(config.memory_bits // 8):
        for planes in range(1, config.max_planes + 1):
            for residual in (False, True):
                side = SIDES[bench.rng.integers(2)]
                pieces.append(random_records(bench.rng, config, side, 3, planes, residual))
                offsets.append(offset)
    await run(bench, pieces, offsets)


@cocotb.test()
async def pace(dut: HierarchyObject) -> None:
    """Check whole blocks at random offsets: one slice or one word per cycle, without gaps."""
    bench = await Bench.start(dut, "record_unpacker")
    config = bench.config
    pieces = [
        random_records(bench.rng, config, SIDES[i % 2], config.block, config.max_planes, False)
        for i in range(8)
    ]
    offsets = bench.rng.integers(0, config.memory_bits // 8, len(pieces)).tolist()
    await run(bench, pieces, offsets)
    slices, words = slice_cycles(bench), bench.drivers["words"].cycles
    if len(slices) > len(words):
        expected = list(range(slices[0], slices[0] + len(slices)))
        bench.check(slices, expected, "cycles of the slices")
    else:
        expected = list(range(words[0], words[0] + len(words)))
        bench.check(words, expected, "cycles of the words")


@cocotb.test()
async def latency(dut: HierarchyObject) -> None:
    """Check the latency from the last word of a one-plane piece to its first slice."""
    bench = await Bench.start(dut, "record_unpacker")
    config = bench.config
    pieces = [random_records(bench.rng, config, side, 1, 1, False) for side in SIDES]
    size = config.memory_bits // 8
    offsets = bench.rng.integers(0, size, 2).tolist()
    await run(bench, pieces, offsets)
    words = -(-(offsets[0] + pieces[0].data.size) // size)
    word = bench.drivers["words"].cycles[words - 1]
    bench.check(slice_cycles(bench)[0] - word, bench.component.latency, "latency")


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_pieces(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random pieces under gaps and back-pressure."""
    bench = await Bench.start(dut, "record_unpacker")
    pieces = [random_piece(bench) for _ in range(8)]
    pieces += [random_records(bench.rng, bench.config, side, 1, 2, False) for side in SIDES]
    offsets = bench.rng.integers(0, bench.config.memory_bits // 8, len(pieces)).tolist()
    await run(bench, pieces, offsets, (source, sink))
