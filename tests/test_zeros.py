"""Shares of zeros, against digits counted one by one."""

from __future__ import annotations

import pytest
import torch

from golden.attend.backends import GoldenBackend
from golden.cache.ternary_cache import TernaryCache
from golden.conditioning import Conditioning
from golden.study.zeros import zero_shares
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

TINY = load_config("tiny")


def filled(code: str, sliding: int | None = None) -> TernaryCache:
    conditioning = [Conditioning(False, None, -12, -12)] * 2
    windows = [sliding] * 2
    cache = TernaryCache(TINY, CacheCode.parse(code), conditioning, GoldenBackend(), windows)
    for layer in range(2):
        keys, values = torch.randn(2, 1, 2, 40, 8, generator=torch.Generator().manual_seed(layer))
        values[..., 4:] = 0  # whole slices of zeros
        cache.update(keys, values, layer)
    return cache


def test_shares_are_counts():
    cache = filled("balanced:2/1,sinks=3,window=5")
    found = zero_shares(cache, (4, 8))
    assert [(share.layer, share.tensor, share.plane) for share in found] == [
        (layer, tensor, plane)
        for layer in range(2)
        for tensor, planes in (("key", 2), ("value", 1))
        for plane in range(planes)
    ]
    for share in found:
        layer = cache.layers[share.layer]
        store = layer.keys if share.tensor == "key" else layer.values
        trits = store.planes().digits[0, :, 3:35, share.plane].tolist()  # the body
        digits = [trit for head in trits for token in head for trit in token]
        assert share.digits == digits.count(0) / len(digits)
        for lanes in (4, 8):
            slices = [digits[i : i + lanes] for i in range(0, len(digits), lanes)]
            assert share.slices[lanes] == sum(not any(s) for s in slices) / len(slices)
    values = [share for share in found if share.tensor == "value"]
    assert all(share.slices[4] >= 0.5 > share.slices[8] for share in values)


@pytest.mark.parametrize("sliding", [4, 5, 6, 20])
def test_shares_of_a_layer_with_a_sliding_window_are_of_its_body(sliding):
    """The newest tokens behind the window; none where the sliding window is all window."""
    found = zero_shares(filled("balanced:2/1,sinks=3,window=5", sliding), (4,))
    shares = [share.digits for share in found if (share.layer, share.tensor) == (0, "key")]
    everything = filled("balanced:2/1,sinks=3,window=5").layers[0].keys.planes().digits
    body = everything[0, :, 40 - sliding : 35]
    if sliding <= 5:
        assert found == []
    else:
        zeros = (body[..., plane, :].eq(0).double().mean().item() for plane in range(2))
        assert shares == list(zeros)


def test_refuses_lanes_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^lanes: 3 does not divide head_dim 8$"):
        zero_shares(filled("balanced:1/1"), (3,))
