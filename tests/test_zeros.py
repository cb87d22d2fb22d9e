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


def filled(code: str) -> TernaryCache:
    cache = TernaryCache(
        TINY, CacheCode.parse(code), [Conditioning(False, None, -12, -12)] * 2, GoldenBackend()
    )
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


def test_refuses_lanes_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^lanes: 3 does not divide head_dim 8$"):
        zero_shares(filled("balanced:1/1"), (3,))
