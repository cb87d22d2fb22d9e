"""Anchors, by their bench on both simulators, and their golden twin by hand."""

from __future__ import annotations

import pytest
from bench_matrix import CONFIGS, TINY, check_bench

from golden.anchors import Decision, HeadAnchors, window_hits
from kvtq_hw.contract.config import EngineConfig
from rtl.anchors import Anchors

SHAPES = {
    # five slots, a number that is no power of two
    "tiny": TINY.replace(name="tiny-5-slots", anchor_slots=5),
    "odd": CONFIGS["odd"],
    # as many query heads as there may be: several hits per token and job
    "G8": TINY.replace(name="G8", query_group=8, anchor_slots=8),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("anchors", config, simulator)


def test_a_block_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^anchor_slots: 0 is not allowed; must be at least 1"):
        Anchors(TINY.replace(anchor_slots=0))


def test_hits_by_hand() -> None:
    """Quarters of the largest weight so far, of sinks and window, in units of 2**-5."""
    scores = [
        # two sinks, two of the body, five of the window
        [10, 100, 900, 0, 36, 35, 200, 136, 900],
        [0, 0, 0, 0, -64, -65, 0, 1, -64],
    ]
    assert window_hits(TINY, scores, 2, 5) == [2, 0, 2, 2, 0]
    assert window_hits(TINY, [[5, -90]], 0, 2) == [1, 0]
    assert window_hits(TINY, [[5, -90]], 0, 1) == [0]
    assert window_hits(TINY, [[5]], 1, 0) == []


def test_decisions_by_hand() -> None:
    head = HeadAnchors(3)
    ask = {"anchors": 2, "threshold": 2}
    assert head.decide(leaving=False, slot=0, new=True, **ask) == Decision(False, 0)
    head.add([2, 1, 0], 2)
    assert head.hits == {2: 2, 0: 1, 1: 0}
    assert head.decide(leaving=True, slot=0, new=True, **ask) == Decision(False, 0)
    assert head.decide(leaving=True, slot=2, new=False, **ask) == Decision(True, 0)
    assert (head.count, head.hits[2]) == (1, 0)
    head.add([0, 300], 0)
    assert head.hits[1] == 255
    assert head.decide(leaving=True, slot=1, new=False, **ask) == Decision(True, 1)
    head.add([9, 9], 0)
    assert head.decide(leaving=True, slot=0, new=False, **ask) == Decision(False, 2)
    assert head.decide(leaving=False, slot=None, new=False, **ask) == Decision(False, 2)
    assert Decision(True, 1).after == 2
