"""Measure cycles per job of the accelerator, against its bounds, with several memories.

Usage: python benchmarks/accelerator_cycles.py [--preset NAME] [--code CODE] [--width BITS]...

Each row has a memory behind AXI with its width, latency and words per cycle. Jobs run back to back,
as the KV heads of a layer do; "cycles" are the accelerator's own counter divided by the number of
jobs. A job takes at least one cycle per plane slice, and at least the cycles in which the memory
delivers its words; the larger number is the bound. The last tables show what an append adds, and
what anchors add to a job that appends. The memory is filled at random, since timing does not depend
on data but for the number of anchors, which is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import click
import numpy as np

from golden.tables import anchor_words
from kvtq_hw.commands.frame.options import code_option, preset_option
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.cycle_model import code_bound
from kvtq_hw.contract.layout import MemoryLayout
from kvtq_hw.contract.packing import cache_bytes
from sim.host.descriptors import HeadDescriptors
from sim.verilated.accelerator import (
    DDR4,
    IDEAL,
    LPDDR4,
    AcceleratorJob,
    MemorySettings,
    VerilatedAccelerator,
)

LATENCIES = (30, 100, 200)
CONTEXTS = (64, 256, 1024)
HEADS = 3
#: Code of the tables in docs/cycles.md.
CODE = CacheCode.parse("balanced:2/1,sinks=4,window=32")
#: Planes of keys and of values per cycle, measured besides one of each.
PLANES = (3, 2)
#: Places for anchors: 2 % of 1024 tokens.
ANCHORS = 20
#: Jobs with places for anchors: hits that make an anchor, and number of anchors before.
WITH_ANCHORS = {"none": (4095, 0), "each job a new one": (0, 0), "all places taken": (0, ANCHORS)}


def bounds(
    config: EngineConfig, code: CacheCode, tokens: int, settings: MemorySettings
) -> tuple[int, int]:
    """Return two lower bounds in cycles per job: by its plane slices and by its memory words."""
    words = -(-cache_bytes(config, code, tokens) // (config.memory_bits // 8))
    words /= settings.words_per_cycle
    if settings.refresh_interval:
        words /= 1 - settings.refresh_cycles / settings.refresh_interval
    return code_bound(config, code, tokens), round(words)


def cycles(
    config: EngineConfig,
    code: CacheCode,
    tokens: int,
    settings: MemorySettings,
    append: bool,
    anchors: tuple[int, int] = (0, 0),
) -> float:
    """Measure cycles per job, with jobs of different KV heads back to back."""
    counted = counters(config, code, tokens, settings, append, HEADS, anchors)
    return counted["busy_cycles"] / HEADS


def counters(
    config: EngineConfig,
    code: CacheCode,
    tokens: int,
    settings: MemorySettings,
    append: bool,
    heads: int,
    anchors: tuple[int, int] = (0, 0),
) -> dict[str, int]:
    """Attend to `tokens` tokens, one job per KV head; return the accelerator's counters by name.

    The memory holds random records. If `append`, each job appends the last of these tokens.

    Parameters
    ----------
    anchors : hits that make an anchor, and number of anchors before the job, for a code with places
        for anchors
    """
    rng = np.random.default_rng(tokens)
    layout = MemoryLayout(config, [code], heads, tokens)
    memory = rng.integers(0, 256, layout.bytes, np.uint8)
    largest = (1 << config.scale_exponent_bits) - 1
    work = []
    for head in range(heads):
        descriptors = HeadDescriptors(
            layout,
            0,
            head,
            table=head,
            rotate=True,
            centre=True,
            anchor_threshold=anchors[0],
        )
        descriptor = descriptors.job(
            tokens,
            append=append,
            query_exponent=[20] * config.query_group,
            first=True,
            value_exponent=largest,
        )
        vectors = rng.integers(-(1 << 15), 1 << 15, (2, config.head_dim))
        queries = rng.integers(-(1 << 15), 1 << 15, (config.query_group, config.head_dim))
        work.append(AcceleratorJob(descriptor, vectors if append else None, queries))
    with VerilatedAccelerator(config, memory, settings=settings) as accelerator:
        if code.tiers.anchors:
            states = [anchor_words(n, anchors[1], [0] * code.tiers.window) for n in range(heads)]
            accelerator.load_tables([np.array(state, np.uint32) for state in states])
        return accelerator.run(work).counters


@click.command()
@preset_option
@code_option("Code of every token.", CODE, accepts="code")
@click.option(
    "--width", "widths", multiple=True, default=(64, 128, 256), show_default=True, type=int
)
def main(config: EngineConfig, code: CacheCode, widths: tuple[int, ...]) -> None:
    """Print the tables."""
    contexts = [tokens for tokens in CONTEXTS if tokens <= config.max_context]
    click.echo(f"{config.name}, {code}, {HEADS} KV heads back to back: cycles per head")
    click.echo(f"\nAttention over {contexts[-1]} tokens")
    click.echo(
        f"{'bits':>5} {'memory':>8} {'latency':>8} {'cycles':>8} {'slices':>8} {'words':>8} "
        f"{'bound/cycles':>13}"
    )
    for width in widths:
        wide = config.replace(memory_bits=width)
        rows = [("ideal", replace(IDEAL, latency=latency)) for latency in LATENCIES]
        if width == 256:  # the port width that DDR4 and LPDDR4 are meant for
            rows += [("DDR4", DDR4), ("LPDDR4", LPDDR4)]
        for name, settings in rows:
            taken = cycles(wide, code, contexts[-1], settings, append=False)
            slices, words = bounds(wide, code, contexts[-1], settings)
            ratio = max(slices, words) / taken
            click.echo(
                f"{width:5} {name:>8} {settings.latency:8} {taken:8.0f} {slices:8} {words:8} "
                f"{ratio:13.4f}"
            )

    click.echo(f"\nAttention with several planes per cycle, {IDEAL.latency} cycles of latency")
    click.echo(
        f"{'bits':>5} {'planes':>8} {'cycles':>8} {'slices':>8} {'words':>8} {'bound/cycles':>13}"
    )
    for width in (width for width in widths if width >= 128):
        for keys, values in ((1, 1), PLANES):
            wide = config.replace(
                memory_bits=width, key_planes_per_cycle=keys, value_planes_per_cycle=values
            )
            taken = cycles(wide, code, contexts[-1], IDEAL, append=False)
            slices, words = bounds(wide, code, contexts[-1], IDEAL)
            click.echo(
                f"{width:5} {f'{keys}/{values}':>8} {taken:8.0f} {slices:8} {words:8} "
                f"{max(slices, words) / taken:13.4f}"
            )

    click.echo(f"\nWhat an append adds, {widths[-1]} bits, {IDEAL.latency} cycles of latency")
    click.echo(f"{'tokens':>8} {'attend':>8} {'both':>8} {'added':>8}")
    wide = config.replace(memory_bits=widths[-1])
    for tokens in contexts:
        alone, both = (cycles(wide, code, tokens, IDEAL, append) for append in (False, True))
        click.echo(f"{tokens:8} {alone:8.0f} {both:8.0f} {both / alone - 1:8.2%}")

    tokens, kept = contexts[-1], replace(code, tiers=replace(code.tiers, anchors=ANCHORS))
    click.echo(f"\nAttention over {tokens} tokens with append, {ANCHORS} places for anchors")
    click.echo(f"{'planes':>8} {'anchors':>20} {'cycles':>8} {'added':>8}")
    for keys, values in ((1, 1), PLANES):
        wide = config.replace(
            memory_bits=widths[-1], key_planes_per_cycle=keys, value_planes_per_cycle=values
        )
        without = cycles(wide, code, tokens, IDEAL, append=True)
        click.echo(f"{f'{keys}/{values}':>8} {'no places':>20} {without:8.0f}")
        for name, anchors in WITH_ANCHORS.items():
            taken = cycles(wide, kept, tokens, IDEAL, append=True, anchors=anchors)
            click.echo(f"{'':8} {name:>20} {taken:8.0f} {taken / without - 1:8.2%}")


if __name__ == "__main__":
    main()
