"""The rotation: exact in integers, its inverse, blocks, and the definition it must equal."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import check_bench, every_shape

from golden.hadamard import hadamard, hadamard_signs, inverse_hadamard
from kvtq_hw.contract.config import EngineConfig

DIMS = [4, 8, 12, 64, 96, 128, 256]


def matrix(dim: int) -> torch.Tensor:
    """The transform by its definition, [D, D]: element (-1)**popcount(i & j) within a block."""
    size = dim & -dim
    index = torch.arange(size)
    parity = torch.tensor([[bin(i & j).count("1") % 2 for i in index] for j in index])
    block = 1.0 - 2.0 * parity
    return torch.block_diag(*[block] * (dim // size)) * hadamard_signs(dim)


@pytest.mark.parametrize("dim", DIMS)
def test_transform_is_its_definition(dim):
    assert torch.equal(hadamard(torch.eye(dim).double()).T, matrix(dim))
    integers = torch.randint(-32767, 32768, (50, dim), generator=torch.Generator().manual_seed(dim))
    assert torch.equal(hadamard(integers), integers @ matrix(dim).long().T)


@pytest.mark.parametrize("dim", DIMS)
def test_inverse_and_dot_products(dim):
    generator = torch.Generator().manual_seed(dim)
    x, y = torch.randn(2, 3, 5, dim, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inverse_hadamard(hadamard(x)), x)
    torch.testing.assert_close((hadamard(x) * hadamard(y)).sum(-1), (dim & -dim) * (x * y).sum(-1))


def test_an_outlier_channel_and_a_constant_are_spread():
    outlier = torch.zeros(64)
    outlier[5] = 8.0
    assert hadamard(outlier).abs().unique().tolist() == [8.0]
    assert hadamard(torch.ones(64)).abs().max() < 32  # 64 in one element without the signs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_type_is_kept(dtype):
    assert hadamard(torch.ones(2, 8, dtype=dtype)).dtype == dtype


@every_shape
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("hadamard", config, simulator)
