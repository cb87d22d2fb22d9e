"""Tables: which factors are stored, and in which words."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import CONFIGS, SHAPES, check_bench

from golden.feedback import Feedback
from golden.tables import factor_words, load_words
from kvtq_hw.contract.config import EngineConfig, load_config

TINY = load_config("tiny")


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_words_hold_every_factor_above_the_diagonal_once(config: EngineConfig) -> None:
    """By marking each with its own number."""
    dim, lanes = config.head_dim, config.feedback_lanes
    numbers = torch.arange(1, dim * dim + 1).reshape(1, dim, dim).triu(1)
    words = factor_words(config, numbers)
    assert words.shape == (1, config.feedback_words, lanes)
    assert words[words > 0].tolist() == numbers[numbers > 0].tolist()


def test_first_word_of_a_row_has_the_next_element() -> None:
    """Four words of two factors: rows 0 to 6 begin at words 0, 1, 1, 2, 2, 3, 3."""
    factors = torch.arange(64).reshape(8, 8).triu(1)
    words = factor_words(TINY, factors).tolist()
    assert len(words) == TINY.feedback_words == 4 + 3 + 3 + 2 + 2 + 1 + 1
    assert words[:5] == [[0, 1], [2, 3], [4, 5], [6, 7], [10, 11]]
    assert words[-2:] == [[46, 47], [0, 55]]


def test_load_words_by_hand() -> None:
    factors = torch.zeros(1, 8, 8, dtype=torch.int8)
    factors[0, 0, 1], factors[0, 6, 7] = -4, 3
    feedback = Feedback(factors, torch.arange(8)[None])
    centres = torch.tensor([[1, -1, -32768, 0, 0, 0, 0, 2]])
    key_only = list(load_words(TINY, centres, feedback, None, first_head=5))
    assert key_only == [
        [0 | 5 << 3, 1, 0xFFFF, 0x8000, 0, 0, 0, 0, 2],
        [1 | 5 << 3, 0xC0, *[0] * 14, 0x30],
        [2 | 5 << 3, *range(8)],
    ]
    assert [packet[0] for packet in load_words(TINY, None, None, feedback)] == [3, 4]


HEADS = {
    "one head": TINY,
    "odd": CONFIGS["odd"],
    "D80": SHAPES["D80"].replace(table_heads=5),
    "D128": load_config("llama3-8b").replace(table_heads=2),
    # as many as there may be, of the smallest
    "1024 heads": TINY.replace(head_dim=4, lanes=4, table_heads=1024),
}


@pytest.mark.parametrize("config", HEADS.values(), ids=HEADS)
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("tables", config, simulator)
