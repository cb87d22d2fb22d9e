"""Attention straight from packed bytes: the float reference's results up to single precision."""

from __future__ import annotations

import pytest
import torch

from golden.attend.backends import FloatBackend
from golden.attend.single_precision import SinglePrecisionBackend
from golden.cache.attention_job import AttentionJob, CachePass
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.conditioning import Conditioning
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig, load_config

CONFIG = load_config("smollm2")
CODES = ["balanced:3/2", "balanced:1/1", "balanced:5/5", "residual:3/2"]
CODES += ["balanced:2/1,sinks=4,window=9"]


def filled(config: EngineConfig, code: str, batch: int, heads: int) -> CachePass:
    layer = TernaryCacheLayer(
        config, CacheCode.parse(code), Conditioning(True, None, -12, -12), FloatBackend()
    )
    generator = torch.Generator().manual_seed(1)
    for tokens in (50, 1, 20):
        layer.update(*torch.randn(2, batch, heads, tokens, config.head_dim, generator=generator))
    newest = torch.randn(2, batch, heads, 1, config.head_dim, generator=generator)
    return layer.update(*newest)[0]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("packing", ["5in8", "2bit"])
@pytest.mark.parametrize("group", [1, 3, 4, 6])
def test_results_are_those_of_the_float_reference(code, packing, group):
    config = CONFIG.replace(packing=packing, query_group=group)
    layer = filled(config, code, 2, 3)
    queries = torch.randn(
        2, 3, group, 1, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    queries *= 2.0**-12 / 32
    visible = torch.ones(2, 1, 1, 72, dtype=torch.bool)
    visible[1, ..., 40:] = False
    for seen in (None, visible):
        job = AttentionJob(0, queries, layer, seen)
        expected, found = FloatBackend().attend(job), SinglePrecisionBackend().attend(job)
        assert found.shape == expected.shape and found.dtype == torch.float64
        error = (found - expected).norm() / expected.norm()
        assert error < 2e-6


def test_a_sequence_that_sees_nothing_gets_zeros():
    layer = filled(CONFIG, "balanced:2/2", 2, 3)
    visible = torch.ones(2, 1, 1, 72, dtype=torch.bool)
    visible[0] = False
    job = AttentionJob(0, torch.ones(2, 3, 3, 1, 64).double(), layer, visible)
    outputs = SinglePrecisionBackend().attend(job)
    assert not outputs[0].any()
    assert outputs[1].any()


@pytest.mark.parametrize("head_dim", [4, 12, 128])
def test_head_dimensions_that_leave_padding(head_dim):
    config = CONFIG.replace(head_dim=head_dim, lanes=4)
    layer = filled(config, "balanced:2/2", 1, 2)
    queries = torch.randn(
        1, 2, 3, 1, head_dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    job = AttentionJob(0, queries * 2.0**-14, layer, None)
    expected = FloatBackend().attend(job)
    found = SinglePrecisionBackend().attend(job)
    assert (found - expected).norm() < 2e-6 * expected.norm()
