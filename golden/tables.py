"""Golden tables: the words in which heads' centres and feedback matrices are loaded.

A feedback matrix is strictly upper triangular: of row k only the words that hold elements from
k + 1 on are stored, `feedback_words` of `feedback_lanes` factors in all, row after row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from golden.feedback import Feedback
from kvtq_hw.contract.config import EngineConfig

__all__ = ["factor_words", "load_words"]


def factor_words(config: EngineConfig, factors: Tensor) -> Tensor:
    """Factors [..., D, D] as they are stored: [..., feedback_words, feedback_lanes]."""
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
    """What loads the tables of consecutive heads: packets of 32-bit words, a header first in each.

    Parameters
    ----------
    centres : int64 [heads, D]
    key_feedback, value_feedback : of as many heads; what is None is not loaded
    first_head : number of the first of them
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


def _chunks(words: list[list[int]], width: int) -> Iterator[int]:
    """Memory words, each of several numbers, the first one lowest, in 32-bit words likewise."""
    mask = (1 << width) - 1
    for numbers in words:
        word = sum((number & mask) << width * n for n, number in enumerate(numbers))
        for start in range(0, width * len(numbers), 32):
            yield word >> start & 0xFFFFFFFF
