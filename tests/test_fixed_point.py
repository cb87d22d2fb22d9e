"""Exact integer products of the golden model, which float products stand in for where they can."""

from __future__ import annotations

import pytest
import torch

from golden.fixed_point import exact_matmul


@pytest.mark.parametrize(
    ("element", "largest"),
    [
        # the magnitude of int8's smallest is no int8: the bound must not take it for small
        (-128, 32767),
        (-127, 32767),
        # more bits than the mantissa of a double has
        (-128, (1 << 46) - 1),
    ],
)
def test_integer_products_are_exact(element: int, largest: int) -> None:
    queries = [largest] * 1023 + [largest - 1]
    column = torch.full((1024, 1), element, dtype=torch.int8)
    assert exact_matmul(torch.tensor([queries]), column).item() == element * sum(queries)


def test_products_of_nothing_are_zero() -> None:
    found = exact_matmul(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int8))
    assert found.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("largest", [1, 1 << 10, (1 << 20) - 1, (1 << 27) - 1])
@pytest.mark.parametrize("shape", [(1, 1, 3, 64), (2, 1, 5, 300), (4, 7)])
def test_matmul_is_exact(largest: int, shape: tuple[int, ...]) -> None:
    """The odd sum of many large products needs every bit of the inner dimension's bound."""
    a = torch.full(shape, largest, dtype=torch.int64)
    a[..., 0] -= 1
    b = torch.full((*shape[:-2], shape[-1], 2), largest, dtype=torch.int64)
    b[..., 0, 1] = -1
    inner = shape[-1] - 1
    expected = torch.tensor(
        [inner * largest**2 + (largest - 1) * largest, inner * largest**2 + 1 - largest]
    )
    assert torch.equal(exact_matmul(a, b), expected.expand(*shape[:-1], 2))
