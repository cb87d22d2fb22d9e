"""Golden anchors: the hits that a job's scores give, and the decisions, for one KV head.

docs/contract.md ("Anchor tokens") defines both. `golden.cache` computes them for whole layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtq_hw.contract.config import EngineConfig

__all__ = [
    "HIT_STEPS",
    "MOST_HITS",
    "NO_DECISION",
    "Decision",
    "HeadAnchors",
    "sum_steps",
    "window_hits",
]

#: A token's hits stop at this number.
MOST_HITS = 4095
#: Hits by the number of half octaves that a weight is below the sum of weights; no hits below.
HIT_STEPS = tuple(int(16 * 2 ** (-(n + 0.5) / 2) + 0.5) for n in range(10))


def sum_steps(config: EngineConfig) -> tuple[int, ...]:
    """Return what is added to the larger of two scores to get the log2 of the weights' sum.

    Entry n is for scores that are n half octaves apart; the last entry, zero, is for all others.
    """
    unit = 1 << config.score_fraction_bits
    steps = (math.log2(1 + 2 ** (-(n + 0.5) / 2)) for n in range(16))
    return (*(int(unit * step + 0.5) for step in steps), 0)


class Decision(NamedTuple):
    """What a job finds out about its KV head's anchors.

    promoted : the token that leaves the window becomes an anchor
    before : number of anchors before the job
    """

    promoted: bool
    before: int

    @property
    def after(self) -> int:
        """Number of anchors that the job's attention reads."""
        return self.before + self.promoted


#: The decision of a job without anchors.
NO_DECISION = Decision(False, 0)


def window_hits(
    config: EngineConfig, scores: Sequence[Sequence[int]], sinks: int, window: int
) -> list[int]:
    """Count the hits that a job gives to the tokens of its window, in the order of the stream.

    Parameters
    ----------
    scores : of each query head, the scores of all tokens in the order of the stream
    sinks, window : number of tokens at the beginning and at the end of the stream
    """
    steps, fraction_bits = sum_steps(config), config.score_fraction_bits
    hits = [0] * window
    for of_head in scores:
        reference: int | None = None
        for place, score in [
            *((None, score) for score in of_head[:sinks]),
            *enumerate(of_head[len(of_head) - window : -1 if window else 0]),
        ]:
            if reference is None:
                reference = score
            else:
                apart = 2 * abs(score - reference) >> fraction_bits
                reference = max(score, reference) + steps[min(apart, len(steps) - 1)]
            if place is not None:
                below = 2 * (reference - score) >> fraction_bits
                hits[place] += HIT_STEPS[below] if below < len(HIT_STEPS) else 0
    return hits


@dataclass
class HeadAnchors:
    """Anchors of a KV head.

    Attributes
    ----------
    count : number of anchors
    hits : hits of the token in each slot of the window's ring
    """

    count: int = 0
    hits: dict[int, int] = field(default_factory=dict)

    def add(self, hits: Sequence[int], start: int) -> None:
        """Add a job's hits, `window_hits`, to tokens whose first one is in slot `start`."""
        for place, gain in enumerate(hits):
            slot = (start + place) % len(hits)
            self.hits[slot] = min(self.hits.get(slot, 0) + gain, MOST_HITS)

    def decide(
        self, *, leaving: bool, slot: int | None, new: bool, anchors: int, threshold: int
    ) -> Decision:
        """Decide on the token that leaves the window, and clear the hits of the new token.

        Parameters
        ----------
        leaving : a token leaves the window
        slot : slot of the window that the new token takes; None if none comes to the window
        new : no token has left the window before: a new context of the head
        anchors : most anchors
        threshold : hits that make an anchor
        """
        before = 0 if new else self.count
        promoted = (
            leaving
            and slot is not None
            and before < anchors
            and self.hits.get(slot, 0) >= threshold
        )
        if leaving:
            self.count = before + promoted
        if slot is not None:
            self.hits[slot] = 0
        return Decision(promoted, before)
