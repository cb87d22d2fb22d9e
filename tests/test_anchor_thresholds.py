"""Thresholds of anchors from a text, and which tokens of a text become anchors."""

from __future__ import annotations

import pytest
import torch

from golden.llm.anchor_thresholds import HitCounts, anchors_of_text
from kvtq_hw.contract.tiers import ANCHOR_SHARE, Tiers

TOKENS, LOUD = 400, 90


def text(loud: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [1, 2, T, 2] and keys [1, T, 2]: all keys alike, but some get all the attention."""
    queries = torch.tensor([1.0, 0.0]).expand(1, 2, TOKENS, 2)
    keys = torch.zeros(1, TOKENS, 2)
    keys[:, loud, 0] = 10.0
    return queries, keys


def test_a_threshold_keeps_the_share_that_it_is_made_for():
    counts = HitCounts(2)
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(2, 3, TOKENS, 8, generator=generator)
    keys = torch.randn(2, TOKENS, 8, generator=generator)
    counts.add(queries, keys, 1.0)
    thresholds = counts.thresholds()
    tiers = Tiers(sinks=4, window=32, anchors=TOKENS)
    for lower, kept_more in ((0, False), (1, True)):
        anchors = anchors_of_text(queries, keys, 1.0, thresholds - lower, tiers)[:, 4:-32]
        assert ((anchors.float().mean(-1) > ANCHOR_SHARE) == kept_more).all()


def test_the_loud_token_is_the_anchor():
    queries, keys = text([LOUD])
    tiers = Tiers(sinks=4, window=32, anchors=8)
    # a quiet token is hit until the loud one comes into its window, or by all queries
    anchors = anchors_of_text(queries, keys, 1.0, torch.tensor([2 * 31]), tiers)
    expected = torch.ones(1, TOKENS, dtype=torch.bool)
    expected[:, :4] = False
    assert torch.equal(anchors, expected & (expected.cumsum(-1) <= 8))
    one = anchors_of_text(*text([0, LOUD]), 1.0, torch.tensor([2 * 31]), tiers)
    assert one.nonzero().tolist() == [[0, LOUD]]  # beside a loud sink nothing else is hit


@pytest.mark.parametrize("places", [1, 2])
def test_places_are_limited(places):
    loud = [0, LOUD, LOUD + 50, LOUD + 100]
    tiers = Tiers(sinks=1, window=16, anchors=places)
    anchors = anchors_of_text(*text(loud), 1.0, torch.tensor([2 * 31]), tiers)
    assert anchors.nonzero()[:, 1].tolist() == loud[1 : 1 + places]


def test_a_head_without_hits_gets_the_smallest_threshold():
    counts = HitCounts(1)
    counts.add(*text([0]), 1.0)
    assert counts.thresholds().tolist() == [1]
