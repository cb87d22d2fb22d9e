"""Dequantizer: the definition, and the bound that its width rests on."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import check_bench, every_config

from golden.dequantizer import dequantize
from golden.planes import Planes
from golden.quantizer import quantize
from kvtq_hw.contract.config import EngineConfig, load_config

CONFIG = load_config("tiny")


def test_runs_add_up() -> None:
    """Two planes under one scale and one under another, by hand."""
    trits = torch.zeros(1, 3, 8, dtype=torch.int8)
    trits[0, :, 0] = torch.tensor([1, -1, 1])
    trits[0, 2, 5] = -1
    planes = Planes(
        trits,
        torch.tensor([[True, False, True]]),
        torch.tensor([[3, 7, 1]]),
        torch.tensor([[2, 9, 0]]),
    )
    expected = [44 * (1 - 3) + 9, 0, 0, 0, 0, -9, 0, 0]
    assert dequantize(CONFIG, planes).tolist() == [expected]


@pytest.mark.parametrize("digits", range(1, 6))
@pytest.mark.parametrize("ratio", [0.05, 0.6, 1.5, 1.99, 2.5, 40])
def test_no_element_reaches_twice_its_magnitude(digits: int, ratio: float) -> None:
    """Whatever the scale: so a requantized vector fits `requantized_bits`."""
    generator = torch.Generator().manual_seed(digits)
    x = (torch.randn(2000, 8, generator=generator) * 1000).long()
    x = torch.cat([x, torch.full((1, 8), CONFIG.conditioned_max)])
    restored = dequantize(CONFIG, quantize(CONFIG, x, "balanced", digits, "absmean", ratio=ratio))
    assert (restored.abs() <= (2 * x.abs() - 1).clamp(min=0)).all()
    assert restored.abs().max() < 1 << (CONFIG.requantized_bits - 1)


@every_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("dequantizer", config, simulator)
