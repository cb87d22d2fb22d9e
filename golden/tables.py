"""Golden tables: the words that load head constants and the state of anchors.

A feedback matrix is strictly upper triangular. Row k starts at the word that holds element k + 1.
A matrix takes `feedback_words` words of `feedback_lanes` factors, row after row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from golden.feedback import Feedback
from kvtq_hw.contract.config import EngineConfig

__all__ = ["anchor_words", "factor_words", "load_words"]

#: Section of the anchors, behind those of centres, factors and shifts.
_ANCHORS = 5


def factor_words(config: EngineConfig, factors: Tensor) -> Tensor:
    """Arrange factors [..., D, D] in memory words: [..., feedback_words, feedback_lanes]."""
    lanes = config.feedback_lanes
    words = factors.unflatten(-1, (4, lanes))
    rows = [words[..., k - 1, k // lanes :, :] for k in range(1, config.head_dim)]
    return torch.cat(rows, -2)


def load_words(
    config: EngineConfig,
    centres: Tensor | None,
    key_feedback: Feedback | None,
    value_feedback: Feedback | None,
    first_head: int = 0,
) -> Iterator[list[int]]:
    """Yield the packets that load the head constants of consecutive heads.

    A packet is a list of 32-bit words, the first of which is a header. Constants that are None are
    not loaded.

    Parameters
    ----------
    centres : int64 [heads, D], or None
    key_feedback, value_feedback : feedback matrices of the same heads, or None
    first_head : number of the first head
    """
    contents = [centres]
    for feedback in (key_feedback, value_feedback):
        contents += (
            [None, None]
            if feedback is None
            else [
                factor_words(config, feedback.factors),
                feedback.shift,
            ]
        )
    bits = [16, 4, 3, 4, 3]
    for section, (numbers, width) in enumerate(zip(contents, bits, strict=True)):
        if numbers is not None:
            words = numbers[..., None] if section in (0, 2, 4) else numbers
            header = section | first_head << 3
            yield [header, *_chunks(words.long().flatten(0, 1).tolist(), width)]


def anchor_words(head: int, count: int, hits: Sequence[int]) -> list[int]:
    """Return the packet that loads the anchors of a head.

    Parameters
    ----------
    head : number of the head
    count : number of anchors
    hits : hits of the token in each slot of the window's ring
    """
    return [_ANCHORS | head << 3, count, *hits]


def _chunks(words: list[list[int]], width: int) -> Iterator[int]:
    """Yield memory words as 32-bit words, the lowest first.

    Each element of `words` holds the numbers of one memory word, the first number lowest.
    """
    mask = (1 << width) - 1
    for numbers in words:
        word = sum((number & mask) << width * n for n, number in enumerate(numbers))
        for start in range(0, width * len(numbers), 32):
            yield word >> start & 0xFFFFFFFF
