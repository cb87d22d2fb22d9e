"""Rounding with feedback: the factorisation, the integer recurrence, and what it is for."""

from __future__ import annotations

import pytest
import torch

from golden.dequantizer import dequantize
from golden.feedback import Feedback, feedback_from_hessian, triangular_factor
from golden.quantizer import quantize
from kvtq_hw.contract.config import load_config

CONFIG = load_config("tiny")


def correlated(heads: int, dim: int, seed: int = 0) -> torch.Tensor:
    """A Hessian whose directions differ by far in weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(heads, dim, 4 * dim, generator=generator, dtype=torch.float64)
    mixed = torch.randn(heads, dim, dim, generator=generator, dtype=torch.float64) @ x
    return mixed @ mixed.mT


def vectors(*shape: int, seed: int = 1, spread: int = 20000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * spread).long()


def test_factor_is_that_of_the_definition():
    hessian = correlated(3, 8)
    factor = triangular_factor(hessian, 0.1)
    assert not factor.tril().any()
    unit = factor + torch.eye(8)
    mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    inverse = torch.linalg.inv(unit)
    diagonal = inverse @ (hessian + 0.1 * mean * torch.eye(8)) @ inverse.mT
    expected = torch.diag_embed(diagonal.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(diagonal, expected)


def test_each_row_has_the_power_of_two_with_the_least_error():
    factor = triangular_factor(correlated(2, 8), 0.03)
    found = feedback_from_hessian(correlated(2, 8), 0.03)
    for head in range(2):
        for row in range(8):
            target = factor[head, row]
            errors = {}
            for shift in range(8):
                rounded = (target * 2**shift).round().clamp(-4, 4)
                errors[shift] = ((rounded / 2**shift - target).square().sum().item(), rounded)
            best = min(errors, key=lambda shift: errors[shift][0])
            assert found.shift[head, row] == best
            assert torch.equal(found.factors[head, row].double(), errors[best][1])


def reference(
    x: list[int],
    step: int,
    limit: int,
    factors: list[list[int]],
    shift: list[int],
    saturate: bool = True,
) -> list[int]:
    """One vector in plain Python: codes, from the definition; or with sums that do not saturate."""
    bits = CONFIG.conditioned_bits
    codes: list[int] = []
    sums = [0] * len(x)
    for k, element in enumerate(x):
        total = element + sums[k]
        rounded = max(-(1 << bits), min((1 << bits) - 1, total))
        nearest = min(
            range(-limit, limit + 1), key=lambda code: (abs(rounded - step * code), abs(code))
        )
        codes.append(nearest)
        error = element - step * nearest
        error = max(-(1 << bits - 1), min((1 << bits - 1) - 1, error))
        error = (error + (1 << shift[k] >> 1)) >> shift[k]
        for j in range(k + 1, len(x)):
            total = sums[j] + factors[k][j] * error
            sums[j] = max(-(1 << bits), min((1 << bits) - 1, total)) if saturate else total
    return codes


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("spread", [2000, 200000])
def test_recurrence_is_that_of_the_contract(digits, spread):
    feedback = feedback_from_hessian(correlated(2, 8), 0.03)
    x = vectors(3, 2, 40, 8, spread=spread)
    planes = quantize(CONFIG, x, "balanced", digits, "absmean", ratio=1.7, feedback=feedback)
    found = dequantize(CONFIG, planes)
    step = (8 + planes.fraction[..., 0]) << planes.exponent[..., 0]
    for sequence in range(3):
        for head in range(2):
            for token in range(40):
                scale = step[sequence, head, token].item()
                expected = reference(
                    x[sequence, head, token].tolist(),
                    scale,
                    (3**digits - 1) // 2,
                    feedback.factors[head].tolist(),
                    feedback.shift[head].tolist(),
                )
                assert found[sequence, head, token].tolist() == [scale * c for c in expected]


def test_sums_saturate_whenever_they_change():
    """With errors as large as can be; sums saturated only where they are used would differ."""
    factors = torch.full((1, 8, 8), 4, dtype=torch.int8).triu(1)
    feedback = Feedback(factors, torch.zeros(1, 8, dtype=torch.int64))
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (200, 8), generator=generator) * 2 - 1
    x = 2 * CONFIG.conditioned_max * signs
    planes = quantize(CONFIG, x[None], "balanced", 1, "absmean", ratio=0.3, feedback=feedback)
    found = dequantize(CONFIG, planes)[0]
    step = (8 + planes.fraction[0, :, 0]) << planes.exponent[0, :, 0]
    by_use_only = 0
    for token, scale in enumerate(step.tolist()):
        row, arguments = x[token].tolist(), (scale, 1, factors[0].tolist(), [0] * 8)
        expected = reference(row, *arguments)
        assert found[token].tolist() == [scale * code for code in expected]
        by_use_only += expected != reference(row, *arguments, saturate=False)
    assert by_use_only > 20


def test_without_any_feedback_it_is_plain_rounding():
    nothing = Feedback(torch.zeros(2, 8, 8, dtype=torch.int8), torch.zeros(2, 8, dtype=torch.int64))
    x = vectors(1, 2, 50, 8)
    plain = quantize(CONFIG, x, "balanced", 2, "absmean")
    found = quantize(CONFIG, x, "balanced", 2, "absmean", feedback=nothing)
    assert torch.equal(found.digits, plain.digits)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_it_makes_the_error_that_counts_smaller(digits):
    """e' H e falls by more than a third, although the error itself grows."""
    hessian = correlated(2, 8)
    feedback = feedback_from_hessian(hessian, 0.03)
    x = vectors(1, 2, 2000, 8)
    errors = [
        (dequantize(CONFIG, quantize(CONFIG, x, "balanced", digits, "absmean", feedback=f)) - x)
        for f in (None, feedback)
    ]
    plain, fed = (((e.double() @ hessian) * e).sum().item() for e in errors)
    assert fed < 0.67 * plain
    assert errors[1].square().sum() > errors[0].square().sum()


def test_refusals():
    shift = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^factors are not strictly upper triangular$"):
        Feedback(torch.ones(2, 8, 8, dtype=torch.int8), shift)
    with pytest.raises(
        ValueError, match=r"^shift has shape \(2, 8\), factors \(1, 8, 8\) need \(1"
    ):
        Feedback(torch.zeros(1, 8, 8, dtype=torch.int8), shift)
    feedback = feedback_from_hessian(correlated(2, 8), 0.1)
    with pytest.raises(ValueError, match=r"^feedback: a residual code has none; must be None$"):
        quantize(CONFIG, vectors(1, 2, 3, 8), "residual", 2, "max", feedback=feedback)
