"""Exact integer products of the golden model, which float products stand in for where they can."""

from __future__ import annotations

import pytest
import torch

from golden.fixed_point import exact_matmul, power_of_two, rshift_round


@pytest.mark.parametrize(
    ("element", "largest"),
    [
        # the magnitude of int8's smallest is no int8: the bound must not take it for small
        (-128, 32767),
        (-127, 32767),
        # more bits than the mantissa of a double has
        (-128, (1 << 46) - 1),
        # more than the mantissa has, in the shorter factor too
        (127, -(1 << 45) - 1),
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


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_are_exact_where_float32_products_are_not(precision: str) -> None:
    """A user who lets PyTorch round the factors of float32 products gets the same integers."""
    a = torch.tensor([[(1 << 14) + 1] * 3])
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert exact_matmul(a, torch.ones(3, 1, dtype=torch.int8)).item() == 3 * ((1 << 14) + 1)
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_beyond_64_bits_wrap_around() -> None:
    a = torch.tensor([[1 << 62, -(1 << 40) - 3, 7]])
    b = torch.tensor([[5], [(1 << 41) - 1], [-(1 << 63)]])
    assert torch.equal(exact_matmul(a, b), a @ b)


def test_powers_of_two() -> None:
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0**n for n in range(-1022, 1024)]
    assert power_of_two(torch.tensor([-5000, 5000])).tolist() == [2.0**-1022, 2.0**1023]


def test_shifts_stay_where_their_tensor_is() -> None:
    """A default device, such as a user's GPU, moves no shift away from its number."""
    x, n = torch.tensor([5, -5, 7]), torch.tensor([1, 1, 0])
    with torch.device("meta"):
        assert rshift_round(x, n).tolist() == [3, -2, 7]
        assert rshift_round(x, 1).tolist() == [3, -2, 4]
