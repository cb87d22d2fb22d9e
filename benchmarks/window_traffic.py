"""Measure bytes and cycles of a decode step in a layer with a sliding window, and in one without.

Usage: python benchmarks/window_traffic.py [--code CODE] [--sliding TOKENS] [--context TOKENS]...

A step is one job of the accelerator: it appends a token to a KV head and attends with the head's
queries. The configuration has the shape of Gemma 3 270M. All measured numbers are those of the
accelerator's own counters. The memory has a latency of 100 cycles and moves a word per cycle. It is
filled at random, since neither traffic nor timing depends on data.

- read: bytes of the memory words that were read; "stored" are the bytes of the records that the
  queries attend to. The step also reads the token that leaves the window of recent tokens, and the
  words at the ends of each burst hold bytes of other records.
- cycles: cycles with the job in the core; "append" are those from the append's task to the memory's
  last answer, "model" are those of an engine that never waits for memory or append, and "bound" is
  one slice of planes per cycle.
"""

from __future__ import annotations

from typing import NamedTuple

import click
from accelerator_cycles import counters

from kvtq_hw.commands.frame.options import code_option
from kvtq_hw.contract.codes import DEFAULT_CODE, CacheCode
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.cycle_model import code_bound, code_job_cycles
from kvtq_hw.contract.packing import cache_bytes
from sim.verilated.accelerator import IDEAL

CONTEXTS = (256, 512, 1024, 2048)
#: Shape of Gemma 3 270M's heads: 18 layers of one KV head.
SHAPE = {"head_dim": 256, "query_group": 4, "lanes": 64, "table_heads": 18}


class Step(NamedTuple):
    """Bytes and cycles of a decode step of one KV head; see the module's text."""

    read: int
    stored: int
    written: int
    cycles: int
    append: int
    model: int
    bound: int


def engine() -> EngineConfig:
    """Return the configuration that commands fit to Gemma 3 270M."""
    return load_config("smollm2").replace(**SHAPE, name="fitted")


def step(config: EngineConfig, code: CacheCode, tokens: int) -> Step:
    """Measure the step that appends the last of `tokens` tokens."""
    counted = counters(config, code, tokens, IDEAL, append=True, heads=1)
    word = config.memory_bits // 8
    return Step(
        read=word * counted["read_words"],
        stored=cache_bytes(config, code, tokens),
        written=word * counted["written_words"],
        cycles=counted["busy_cycles"],
        append=counted["append_cycles"],
        model=code_job_cycles(config, code, tokens),
        bound=code_bound(config, code, tokens),
    )


@click.command()
@code_option("Code of every layer.", DEFAULT_CODE, accepts="code")
@click.option("--sliding", default=512, show_default=True, type=click.IntRange(min=1))
@click.option("--context", "contexts", multiple=True, default=CONTEXTS, show_default=True, type=int)
def main(code: CacheCode, sliding: int, contexts: tuple[int, ...]) -> None:
    """Print a table in Markdown."""
    config = engine()
    click.echo("| context | sliding window | " + " | ".join(Step._fields) + " |")
    click.echo("|---" * (2 + len(Step._fields)) + "|")
    full, windowed = code.for_layers([None, sliding])
    for tokens in contexts:
        for name, of_layer in ((str(sliding), windowed), ("none", full)):
            row = (tokens, name, *step(config, of_layer, tokens))
            click.echo(f"| {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main()
