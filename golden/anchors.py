"""Golden anchors: the hits that a job's scores give, and the decisions, for one KV head.

docs/contract.md ("Anchor tokens") defines both. `golden.cache` computes them for whole layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kvtq_hw.contract.config import EngineConfig

__all__ = ["MOST_HITS", "NO_DECISION", "Decision", "HeadAnchors", "window_hits"]

#: A token's hits stop at this number.
MOST_HITS = 255


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
    hits = [0] * window
    for of_head in scores:
        reference = max(of_head[:sinks], default=None)
        recent = of_head[len(of_head) - window :]
        for place, score in enumerate(recent[:-1]):
            reference = score if reference is None else max(reference, score)
            hits[place] += score >= reference - (2 << config.score_fraction_bits)
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
