"""The query conditioner: as close to the queries as the lanes' width allows, whatever comes."""

from __future__ import annotations

import pytest
import torch
from bench_matrix import check_bench, every_shape

from golden.hadamard import hadamard
from golden.queries import Queries, quantize_queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.config import VECTOR_MAX, EngineConfig, load_config

CONFIG = load_config("smollm2")
#: Queries of 12 bits: the cases below are written out for them.
WIDE = CONFIG.replace(query_bits=12)


def conditioned(vector: list[int], exponent: int = 20, rotate: bool = False) -> Queries:
    """One query [D] of one head, D as the vector has it."""
    queries = Queries(torch.tensor([[vector]]), torch.tensor([[exponent]]))
    return query_conditioner(WIDE, queries, rotate)


@pytest.mark.parametrize(
    ("vector", "values", "shift"),
    [
        ([2047, -2047, 1, 0], [2047, -2047, 1, 0], 0),  # 11 bits and a sign: as they are
        ([2048, -2048, 3, 1], [1024, -1024, 2, 1], 1),  # halves round up
        ([4095, -4095, -3, -1], [2047, -2047, -1, 0], 1),  # 2048 does not fit
        ([VECTOR_MAX, -VECTOR_MAX, 16, 8], [2047, -2047, 1, 1], 4),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
    ],
)
def test_smallest_shift_that_fits(vector, values, shift):
    found = conditioned(vector)
    assert found.values.flatten().tolist() == values
    assert found.exponent.item() == 20 - shift


def test_exponent_stays_in_its_field():
    assert conditioned([VECTOR_MAX] * 4, -125).exponent.item() == -128
    assert conditioned([1] * 4, 127).exponent.item() == 127


def test_rotated_query_is_the_transform_of_the_integers():
    generator = torch.Generator().manual_seed(0)
    exponent = torch.zeros(2, 5, dtype=torch.int64)
    for size in (1, 50, VECTOR_MAX):
        values = torch.randint(-size, size + 1, (2, 5, 64), generator=generator)
        found = query_conditioner(CONFIG, Queries(values, exponent), rotate=True)
        exact = hadamard(values).double()
        error = torch.ldexp(found.values.double(), -found.exponent[..., None]) - exact
        step = torch.ldexp(torch.ones(2, 5).double(), -found.exponent)[..., None]
        assert (error.abs() <= step / 2).logical_or(found.values.abs() == CONFIG.query_max).all()
        assert (error.abs() <= step).all()
        largest = found.values.abs().amax(-1)
        assert (largest >= (CONFIG.query_max + 1) // 2).logical_or(found.exponent == 0).all()


@pytest.mark.parametrize(("config", "limit"), [(WIDE, 0.0006), (CONFIG, 16 * 0.0006)])
@pytest.mark.parametrize("rotate", [False, True])
def test_sixteen_bits_from_the_host_cost_nothing(config, limit, rotate):
    """Relative rms error of the real query: that of 12 bits alone, 0.0004, or of 8, 16 times it."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, 4, 64, generator=generator, dtype=torch.float64)
    found = query_conditioner(config, quantize_queries(config, queries), rotate)
    exact = hadamard(queries) if rotate else queries
    unit = torch.ldexp(torch.ones(3, 4).double(), -config.score_fraction_bits - found.exponent)
    real = found.values * unit[..., None] * (64**0.5 * torch.log(torch.tensor(2.0).double()))
    error = (real - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < limit


@pytest.mark.parametrize(
    ("size", "value", "exponent"),
    [
        (1.0, 23637, 17 - 4),  # log2(e) / 8 = 0.18 is 23637 * 2**-17; 4 fraction bits of scores
        (0.0, 0, 127),
        (2.0**-300, 23637, 127),
        (2.0**300, 23637, -128),
    ],
)
def test_exponents_of_queries_from_the_host_stay_in_their_field(size, value, exponent):
    found = quantize_queries(CONFIG, torch.full((1, 1, 64), size, dtype=torch.float64))
    assert found.values.flatten().tolist() == [value] * 64
    assert found.exponent.item() == exponent


@pytest.mark.parametrize("element", [float("nan"), float("inf")])
def test_queries_that_are_not_finite_are_refused(element):
    with pytest.raises(ValueError, match=r"^queries hold an element that is not finite$"):
        quantize_queries(CONFIG, torch.tensor([[[0.0, element]]]))


@every_shape
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("query_conditioner", config, simulator)
