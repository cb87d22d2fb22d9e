"""Bench of the key lanes: sums of random and extreme slices, under every mix of stalls."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import torch
from cocotb.handle import HierarchyObject

from golden.key_lanes import key_lanes
from kvtq_hw.contract.config import EngineConfig
from sim.bench.bench import STALL_MIXES, Bench
from sim.bench.stimulus import element_payloads, random_elements

Beats = list[dict[str, Any]]


def corner_slices(config: EngineConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of extreme elements [N, P * L] and extreme queries [N, G, L]."""
    group, top = config.query_group, config.query_max
    lanes = config.lanes * config.key_planes_per_cycle
    odd, one_hot = np.arange(lanes) % 2, np.arange(lanes) == lanes - 1
    low, high = config.element_min, config.element_max
    ends = sorted({low, -1, 0, 1, high})
    planes = [end * chosen for chosen in (np.ones(lanes), one_hot) for end in ends]
    planes += [np.where(odd, low, high)]
    rows = [np.full(lanes, end) for end in (-top, 0, 1, top)] + [np.where(odd, -top, top)]
    queries = [np.stack([sign * row for sign in np.resize([1, -1], group)]) for row in rows]
    pairs = [(plane, query) for plane in planes for query in queries]
    elements, rows_of_heads = zip(*pairs, strict=True)
    of_lanes = np.stack(rows_of_heads)[..., : config.lanes]
    return np.stack(elements).astype(np.int8), of_lanes.astype(np.int64)


def random_slices(bench: Bench, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw random elements [N, P * L] and queries [N, G, L]."""
    config = bench.config
    shape = (count, config.query_group, config.lanes)
    queries = bench.rng.integers(-config.query_max, config.query_max + 1, shape)
    width = config.lanes * config.key_planes_per_cycle
    return random_elements(bench.rng, config, (count, width)), queries


def beats(bench: Bench, elements: np.ndarray, queries: np.ndarray) -> tuple[Beats, Beats]:
    """Return input payloads with random tags, and the golden model's outputs."""
    config, rng = bench.config, bench.rng
    planes = elements.reshape(len(elements), -1, config.lanes)
    of_planes = key_lanes(
        torch.from_numpy(planes)[:, None], torch.from_numpy(queries)[:, :, None, :]
    )[:, :, 0, 0]  # [N, G, P]
    sums = (of_planes * 3 ** torch.arange(planes.shape[1])).sum(-1)
    limits = {
        "fraction": 1 << config.scale_fraction_bits,
        "exponent": 1 << config.scale_exponent_bits,
        "unit": 2,
        "last": 2,
        "slice": config.slices,
        "block_end": 2,
        "job_end": 2,
    }
    tags = [{name: int(rng.integers(n)) for name, n in limits.items()} for _ in elements]
    inputs = [
        {"elements": plane, "queries": query, "tag": tag}
        for plane, query, tag in zip(
            element_payloads(rng, config, elements), queries.tolist(), tags, strict=True
        )
    ]
    outputs = [{"sums": row, "tag": tag} for row, tag in zip(sums.tolist(), tags, strict=True)]
    return inputs, outputs


@cocotb.test()
@cocotb.parametrize(source=STALL_MIXES, sink=STALL_MIXES)
async def random_data(dut: HierarchyObject, source: str, sink: str) -> None:
    """Check random slices, with gaps at the source and back-pressure at the sink."""
    bench = await Bench.start(dut, "key_lanes")
    inputs, outputs = beats(bench, *random_slices(bench, 40))
    bench.drive("i", inputs, source)
    bench.expect("o", outputs, sink)
    await bench.finish()


@cocotb.test()
@cocotb.parametrize(sink=STALL_MIXES)
async def corner_data(dut: HierarchyObject, sink: str) -> None:
    """Check elements at their limits, all, one or alternating, against the largest queries."""
    bench = await Bench.start(dut, "key_lanes")
    inputs, outputs = beats(bench, *corner_slices(bench.config))
    bench.drive("i", inputs)
    bench.expect("o", outputs, sink)
    await bench.finish()


@cocotb.test()
async def full_throughput(dut: HierarchyObject) -> None:
    """Check one slice per cycle, exactly `latency` cycles later."""
    bench = await Bench.start(dut, "key_lanes")
    inputs, outputs = beats(bench, *random_slices(bench, 30))
    bench.drive("i", inputs)
    bench.expect("o", outputs)
    await bench.finish()
    taken = bench.drivers["i"].cycles
    bench.check(taken, list(range(taken[0], taken[0] + len(inputs))), "cycles of the slices")
    expected = [cycle + bench.component.latency for cycle in taken]
    bench.check(bench.sinks["o"].cycles, expected, "cycles of the sums")
