"""Quantizer: digits, truncation, scales, corner vectors, both codes."""

from __future__ import annotations

import itertools

import pytest
import torch

from golden.quantizer import (
    _ABSMEAN_BALANCED,
    _ABSMEAN_RESIDUAL,
    _round_to_code,
    _squared_error,
    balanced_digits,
    dequantize,
    quantize,
)
from golden.scale import decode_scale, join_scale, split_scale
from kvtq_hw.config import EngineConfig, load_config

CONFIG = load_config("smollm2")
POWER_OF_TWO = CONFIG.model_copy(update={"scale_fraction_bits": 0})
KINDS = ["balanced", "residual"]
CHOICES = ["max", "absmean", "lsq"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("digits", range(1, 6))
def test_balanced_digits_are_those_of_the_integer(digits):
    limit = (3**digits - 1) // 2
    code = torch.arange(-limit, limit + 1)
    planes = balanced_digits(code, digits)
    assert planes.shape == (digits, 3**digits)
    assert set(planes.unique().tolist()) == {-1, 0, 1}
    assert torch.equal((planes.long() * 3 ** torch.arange(digits)[:, None]).sum(0), code)


@pytest.mark.parametrize(("digits", "dropped"), list(itertools.combinations(range(5, 0, -1), 2)))
def test_dropping_low_digits_is_rounding_to_the_shorter_code(digits, dropped):
    """Dropping k planes leaves the nearest code of N - k digits under 3**k times the scale."""
    limit = (3**digits - 1) // 2
    code = torch.arange(-limit, limit + 1)
    shorter = balanced_digits(code, digits)[dropped:]
    nearest = _round_to_code(code.double(), torch.tensor(3.0**dropped), digits - dropped)
    assert torch.equal(shorter, balanced_digits(nearest, digits - dropped))


@pytest.mark.parametrize("config", [CONFIG, POWER_OF_TWO], ids=["mantissa", "power of two"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("digits", range(1, 6))
def test_balanced_vector_is_the_nearest_code_under_its_stored_scale(config, choice, digits):
    x = gaussian(2, 3, 7, 64)
    planes = quantize(config, x, "balanced", digits, choice)
    assert planes.trits.shape == (2, 3, 7, digits, 64)
    assert planes.unit.tolist() == [[[[True] + [False] * (digits - 1)] * 7] * 3] * 2
    scale = decode_scale(config, planes.fraction, planes.exponent)[..., :1]
    limit = (3**digits - 1) // 2
    codes = torch.arange(-limit, limit + 1)
    best = (x[..., None] - scale[..., None] * codes).abs().amin(-1)
    torch.testing.assert_close((x - dequantize(config, planes)).abs(), best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", [CONFIG, POWER_OF_TWO], ids=["mantissa", "power of two"])
@pytest.mark.parametrize("digits", range(1, 6))
def test_max_is_the_smallest_scale_that_clips_nothing(config, digits):
    x = gaussian(200, 64)
    planes = quantize(config, x, "balanced", digits, "max")
    scale = decode_scale(config, planes.fraction, planes.exponent)[:, 0]
    reach = (3**digits - 1) / 2 + 0.5
    assert (x.abs().amax(-1) <= reach * scale).all()
    word = join_scale(config, planes.fraction, planes.exponent)[:, 0]
    smaller = decode_scale(config, *split_scale(config, word - 1))
    assert (x.abs().amax(-1) > reach * smaller).all()


@pytest.mark.parametrize("config", [CONFIG, POWER_OF_TWO], ids=["mantissa", "power of two"])
@pytest.mark.parametrize("choice", CHOICES)
def test_residual_planes_each_round_what_is_left(config, choice):
    x = gaussian(5, 64)
    planes = quantize(config, x, "residual", 4, choice)
    assert planes.unit.all()
    rest = x
    for plane in range(4):
        step = decode_scale(config, planes.fraction[:, plane], planes.exponent[:, plane])[:, None]
        if choice == "max":
            largest = rest.abs().amax(-1, keepdim=True)
            rounding = 1 / 3 if config is POWER_OF_TWO else 1 / 16
            assert ((step / largest - 1).abs() <= rounding).all()
        trits = planes.trits[:, plane].double()
        for other in (-1, 0, 1):
            assert ((rest - step * trits).abs() <= (rest - step * other).abs()).all()
        rest = rest - step * trits
    torch.testing.assert_close(x - rest, dequantize(config, planes), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_a_vector_of_zeros_has_the_smallest_scale_and_no_digits(kind, choice):
    planes = quantize(CONFIG, torch.zeros(2, 64), kind, 3, choice)
    assert not planes.trits.any()
    assert not planes.fraction.any()
    assert not planes.exponent.any()


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_vectors_beyond_the_scale_range(kind, choice):
    huge = quantize(CONFIG, torch.full((1, 64), 1e30), kind, 2, choice)
    assert (huge.trits == 1).all()
    assert huge.exponent[0, 0] == 31
    assert huge.fraction[0, 0] == 7
    tiny = quantize(CONFIG, torch.full((1, 64), 1e-30), kind, 2, choice)
    assert not tiny.trits.any()
    assert not tiny.exponent.any()


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_negating_a_vector_negates_its_digits(kind, choice):
    x = gaussian(20, 64).mul(8).round() / 8  # many ties
    plus, minus = (quantize(CONFIG, sign * x, kind, 3, choice) for sign in (1, -1))
    assert torch.equal(plus.trits, -minus.trits)
    assert torch.equal(plus.exponent, minus.exponent)
    assert torch.equal(plus.fraction, minus.fraction)


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_a_vector_does_not_depend_on_its_companions(kind, choice):
    x = gaussian(6, 64) * 10.0 ** torch.arange(-3, 3)[:, None]
    together = quantize(CONFIG, x, kind, 3, choice)
    for row in range(6):
        alone = quantize(CONFIG, x[row : row + 1], kind, 3, choice)
        assert torch.equal(alone.trits[0], together.trits[row])
        assert torch.equal(alone.exponent[0], together.exponent[row])
        assert torch.equal(alone.fraction[0], together.fraction[row])


def relative_error(
    kind: str, digits: int, choice: str, x: torch.Tensor, config: EngineConfig = CONFIG
) -> float:
    error = dequantize(config, quantize(config, x, kind, digits, choice)) - x
    return (error.square().sum() / x.square().sum()).item()


@pytest.mark.parametrize("config", [CONFIG, POWER_OF_TWO], ids=["mantissa", "power of two"])
@pytest.mark.parametrize("digits", range(1, 6))
def test_lsq_is_never_worse_than_max_and_close_to_absmean(config, digits):
    x = gaussian(500, 64)
    absmean, lsq, largest = (
        relative_error("balanced", digits, choice, x, config)
        for choice in ("absmean", "lsq", "max")
    )
    assert lsq <= largest
    assert lsq <= absmean * 1.02


@pytest.mark.parametrize("digits", range(2, 6))
def test_balanced_beats_residual_with_fewer_scales(digits):
    x = gaussian(500, 64)
    balanced, residual = (relative_error(kind, digits, "max", x) for kind in KINDS)
    assert balanced < residual


def optimal_ratio(x: torch.Tensor, digits: int, ratios: torch.Tensor) -> float:
    """Scale over mean absolute value with the least total squared error."""
    mean = x.abs().mean(-1)
    errors = torch.stack([_squared_error(x, mean * ratio, digits).sum() for ratio in ratios])
    return ratios[errors.argmin()].item()


def test_absmean_constants_are_the_optimum():
    x = gaussian(4000, 64)
    near = torch.linspace(0.85, 1.15, 31, dtype=torch.float64)
    for digits, constant in enumerate(_ABSMEAN_BALANCED, 1):
        assert optimal_ratio(x, digits, constant * near) == pytest.approx(constant, rel=0.03)
    rest = x
    anywhere = torch.logspace(-0.5, 1.5, 81, dtype=torch.float64)
    for constant in _ABSMEAN_RESIDUAL:
        assert optimal_ratio(rest, 1, anywhere) == pytest.approx(constant, rel=0.06)
        step = rest.abs().mean(-1) * constant
        rest = rest - step[:, None] * _round_to_code(rest, step, 1)


def test_refusals():
    x = torch.zeros(1, 64)
    with pytest.raises(ValueError, match=r"^kind: 'ternary' is unknown; allowed are balanced, res"):
        quantize(CONFIG, x, "ternary", 3, "max")
    with pytest.raises(ValueError, match=r"^digits: 6 is not allowed; must be 1\.\.5$"):
        quantize(CONFIG, x, "balanced", 6, "max")
    with pytest.raises(ValueError, match=r"^scale: 'min' is unknown; allowed are max, absmean"):
        quantize(CONFIG, x, "balanced", 3, "min")
    with pytest.raises(ValueError, match=r"^x holds an element that is not finite$"):
        quantize(CONFIG, x + float("nan"), "residual", 3, "max")
