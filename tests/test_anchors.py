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
    """Scores in units of 2**-5; a half octave is 16."""
    assert TINY.score_fraction_bits == 5
    # equal scores: the reference rises by 32 log2(1 + 2**-1/4) = 28; 28 below it are 16 * 2**-3/4
    assert window_hits(TINY, [[0, 900, 0, 0]], 1, 2) == [10, 0]
    # 28, then 60 or 3 half octaves below: a step of 12, and 72 or 4 half octaves below the sum
    assert window_hits(TINY, [[0, 900, 0, -32, 100]], 1, 3) == [10, 3, 0]
    # ten octaves above all others: no step, and nothing for the token behind it
    loud = [0, 900, 320, 0, 5]
    assert window_hits(TINY, [loud], 1, 3) == [13, 0, 0]
    assert window_hits(TINY, [[0, 900, 0, -32, 100], loud], 1, 3) == [23, 3, 0]
    assert window_hits(TINY, [[5, -90]], 0, 2) == [13, 0]
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
    head.add([0, 5000], 0)
    assert head.hits[1] == 4095
    assert head.decide(leaving=True, slot=1, new=False, **ask) == Decision(True, 1)
    head.add([9, 9], 0)
    assert head.decide(leaving=True, slot=0, new=False, **ask) == Decision(False, 2)
    assert head.decide(leaving=False, slot=None, new=False, **ask) == Decision(False, 2)
    assert Decision(True, 1).after == 2
