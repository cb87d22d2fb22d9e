"""What a layer with a sliding window reads and writes, by the RTL's counters, word by word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_matrix import TINY
from transformers import Gemma3TextConfig

from golden.llm.models import LanguageModel
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.layout import HeadLayout, MemoryLayout, Region, VectorLayout
from sim.verilated.accelerator import IDEAL

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from accelerator_cycles import counters
from window_traffic import engine, step

WORD = TINY.memory_bits // 8
CODES = (
    "balanced:3/2,sliding=9",
    "balanced:3/2,sinks=2,window=3,sliding=9,feedback",
    "balanced:2/1,sinks=3,window=1,sliding=12",
    "balanced:1/2,window=6,sliding=5",  # all of it in the window of the tier
    "residual:2/3,window=4,sliding=10",
    "balanced:3/2,sinks=2,window=3,feedback",
)

#: First and last byte.
Span = tuple[int, int]


def words(span: Span) -> int:
    """Words of the memory port that hold these bytes."""
    return span[1] // WORD - span[0] // WORD + 1


def record(region: Region, slot: int) -> Span:
    start = region.base + slot * region.record_bytes
    return start, start + region.record_bytes - 1


def slots(vectors: VectorLayout, code: CacheCode, tokens: int) -> Iterator[tuple[Region, int]]:
    """Slots in the order in which a job reads them, by the words of docs/contract.md."""
    tiers = code.tiers
    sliding = tiers.sliding or tokens
    behind = max(tokens - tiers.sinks - tiers.window, 0)
    body = min(behind, sliding - tiers.window) if tiers.sliding else behind
    sinks = range(max(0, tokens - sliding), min(tokens, tiers.sinks))
    window = min(tokens, sliding) - len(sinks) - body
    start = min(tokens, sliding) - tiers.window - tiers.sinks
    yield from ((vectors.sinks, slot) for slot in sinks)
    yield from ((vectors.body, slot) for slot in range(body))
    for number in range(window):
        first = start % tiers.window if start > 0 else 0
        yield vectors.window, (first + number) % tiers.window


def read_words(head: HeadLayout, code: CacheCode, tokens: int) -> int:
    """Words of a job's reads: a block's records that follow each other in memory are one read."""
    count = 0
    for vectors in (head.key, head.value):
        order = list(slots(vectors, code, tokens))
        for first in range(0, len(order), TINY.block):
            region, spans = None, []
            for place, slot in order[first : first + TINY.block]:
                start, end = record(place, slot)
                if place is region and start == spans[-1][1] + 1:
                    spans[-1] = spans[-1][0], end
                else:
                    spans.append((start, end))
                region = place
            count += sum(map(words, spans))
    return count


def step_words(code: CacheCode, tokens: int) -> tuple[int, int]:
    """Words that a step reads and writes which appends the last of so many tokens."""
    head = MemoryLayout(TINY, [code], 1, tokens).heads[0][0]
    tiers, newest = code.tiers, tokens - 1
    read, written = read_words(head, code, tokens), 0
    for vectors in (head.key, head.value):
        body, ring = vectors.body, (tiers.sliding or tokens) - tiers.window
        behind = newest - tiers.sinks
        if newest < tiers.sinks:
            written += words(record(vectors.sinks, newest))
        elif not tiers.window:
            written += words(record(body, behind % ring if tiers.sliding else behind))
        else:
            changed = record(vectors.window, behind % tiers.window)
            written += words(changed)
            leaving = behind - tiers.window
            if leaving >= 0 and ring:
                read += words(changed)  # the token that leaves is fetched first
                written += words(record(body, leaving % ring if tiers.sliding else leaving))
    return read, written


@pytest.mark.parametrize("spelled", CODES)
def test_words_of_a_step_are_those_of_its_records(spelled):
    code = CacheCode.parse(spelled)
    for tokens in (1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 17, 18, 22, 31):
        counted = counters(TINY, code, tokens, IDEAL, append=True, heads=1)
        assert (counted["read_words"], counted["written_words"]) == step_words(code, tokens), tokens


def test_a_window_layer_reads_no_more_than_its_window():
    """Rings of 8 and 4 slots: the traffic of eight steps repeats as often as there are tokens."""
    windowed, full = (
        CacheCode.parse(f"balanced:3/2,window=4{sliding}") for sliding in (",sliding=12", "")
    )
    steps = [step(TINY, windowed, tokens) for tokens in range(13, 37)]
    assert len({(s.stored, s.model, s.bound) for s in steps}) == 1
    for eight in (steps[8:16], steps[16:]):
        assert [(s.read, s.written) for s in eight] == [(s.read, s.written) for s in steps[:8]]
    assert steps[0].stored < min(s.read for s in steps)
    assert max(s.read for s in steps) < 1.5 * steps[0].stored
    assert step(TINY, full, 36).read > 2 * step(TINY, full, 13).read


def test_the_benchmark_has_the_configuration_that_commands_fit_to_gemma():
    class Model:
        config = Gemma3TextConfig(
            num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1, head_dim=256
        )

    fitted = LanguageModel("gemma3-270m", Model(), None).engine_config(2048)  # type: ignore[arg-type]
    assert engine() == fitted
