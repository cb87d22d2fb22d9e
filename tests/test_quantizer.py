"""Quantizer: digits, truncation, scales, corner vectors, both codes."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from bench_matrix import check_bench, every_config

from golden.dequantizer import dequantize
from golden.quantizer import (
    BALANCED_RATIOS,
    FEEDBACK_RATIOS,
    RESIDUAL_RATIOS,
    _compare_and_subtract,
    _squared_error,
    absmean_constant,
    balanced_digits,
    quantize,
)
from golden.scale import decode_scale, encode_scale, join_scale, split_scale
from kvtq_hw.contract.config import EngineConfig, load_config

CONFIG = load_config("smollm2")
POWER_OF_TWO = CONFIG.replace(scale_fraction_bits=0)
KINDS = ["balanced", "residual"]
CHOICES = ["max", "absmean", "lsq"]


def gaussian(*shape: int, seed: int = 0, spread: float = 1 << 16) -> torch.Tensor:
    """Integers with a Gaussian distribution."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).long()


def first_choice(code: int) -> tuple[int, ...]:
    """How much of a code the digits from the most significant down are: the tie break."""
    return tuple(balanced_digits(torch.tensor([code]), 5)[:, 0].abs().flip(0).tolist())


@pytest.mark.parametrize("ratios", [BALANCED_RATIOS, *FEEDBACK_RATIOS.values()])
def test_each_further_digit_takes_a_finer_scale(ratios):
    """A code of one more digit reaches three times as far: its scale is less than half, above 0."""
    assert len(ratios) == 5
    assert all(0 < finer < coarser / 2 for coarser, finer in itertools.pairwise(ratios))


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
    assert torch.equal(
        shorter, _compare_and_subtract(code, torch.tensor(3**dropped), digits - dropped)
    )


@pytest.mark.parametrize("digits", range(1, 6))
@pytest.mark.parametrize("step", [1, 2, 8, 13])
def test_every_integer_gets_the_nearest_code(digits, step):
    """By trying all codes; of two as near, the one with more zeros from the top."""
    limit = (3**digits - 1) // 2
    x = torch.arange(-(limit + 2) * step, (limit + 2) * step + 1)
    found = _compare_and_subtract(x, torch.tensor(step), digits)
    codes = sorted(range(-limit, limit + 1), key=first_choice)
    expected = [
        min(codes, key=lambda code: abs(2 * (number - step * code))) for number in x.tolist()
    ]
    assert torch.equal(found, balanced_digits(torch.tensor(expected), digits))


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96])
def test_absmean_scale_is_a_constant_times_the_sum(head_dim):
    """The definition in exact fractions: no shift, no leading one, no tensor."""
    config = CONFIG.replace(head_dim=head_dim, lanes=head_dim)
    constant = absmean_constant(config, BALANCED_RATIOS[0])
    fraction_bits = 8 + (head_dim - 1).bit_length()
    assert constant / 2**fraction_bits * head_dim == pytest.approx(1.52, rel=0.005)
    x = gaussian(100, head_dim) >> torch.arange(100)[:, None] // 5
    planes = quantize(config, x, "balanced", 1, "absmean")
    found = decode_scale(config, planes.fraction, planes.exponent)[:, 0]
    words = split_scale(config, torch.arange(1 << config.scale_bits))
    scales = [int(scale) for scale in decode_scale(config, *words)]
    for row, scale in zip(x.tolist(), found.tolist(), strict=True):
        exact = Fraction(constant * sum(abs(element) for element in row), 1 << fraction_bits)
        assert scale == min(scales, key=lambda s: (abs(s - exact), -s))


@pytest.mark.parametrize("config", [CONFIG, POWER_OF_TWO], ids=["mantissa", "power of two"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("digits", range(1, 6))
def test_balanced_vector_is_the_nearest_code_under_its_stored_scale(config, choice, digits):
    x = gaussian(2, 3, 7, 64)
    planes = quantize(config, x, "balanced", digits, choice)
    assert planes.digits.shape == (2, 3, 7, digits, 64)
    assert planes.unit.tolist() == [[[[True] + [False] * (digits - 1)] * 7] * 3] * 2
    scale = decode_scale(config, planes.fraction, planes.exponent)[..., :1]
    limit = (3**digits - 1) // 2
    codes = torch.arange(-limit, limit + 1)
    best = (x[..., None] - scale[..., None] * codes).abs().amin(-1)
    assert torch.equal((x - dequantize(config, planes)).abs(), best)


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
        trits = planes.digits[:, plane].long()
        for other in (-1, 0, 1):
            assert ((rest - step * trits).abs() <= (rest - step * other).abs()).all()
        rest = rest - step * trits
    assert torch.equal(x - rest, dequantize(config, planes))


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_a_vector_of_zeros_has_the_smallest_scale_and_no_digits(kind, choice):
    planes = quantize(CONFIG, torch.zeros(2, 64, dtype=torch.int64), kind, 3, choice)
    assert not planes.digits.any()
    assert not planes.fraction.any()
    assert not planes.exponent.any()


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_vectors_beyond_the_scale_range(kind, choice):
    config = CONFIG.replace(scale_exponent_bits=4, scale_fraction_bits=0)
    huge = quantize(config, torch.full((1, 64), config.conditioned_max), kind, 2, choice)
    assert (huge.digits == 1).all()
    assert huge.exponent[0, 0] == 15
    tiny = quantize(CONFIG, torch.ones((1, 64), dtype=torch.int64), kind, 2, choice)
    assert not tiny.digits.any()  # half of the smallest scale, 8, is more
    assert not tiny.exponent.any()


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_negating_a_vector_negates_its_digits(kind, choice):
    x = gaussian(20, 64, spread=20)  # many ties
    plus, minus = (quantize(CONFIG, sign * x, kind, 3, choice) for sign in (1, -1))
    assert torch.equal(plus.digits, -minus.digits)
    assert torch.equal(plus.exponent, minus.exponent)
    assert torch.equal(plus.fraction, minus.fraction)


@pytest.mark.parametrize(("kind", "choice"), list(itertools.product(KINDS, CHOICES)))
def test_a_vector_does_not_depend_on_its_companions(kind, choice):
    x = gaussian(6, 64, spread=1000) * 3 ** torch.arange(6)[:, None]
    together = quantize(CONFIG, x, kind, 3, choice)
    for row in range(6):
        alone = quantize(CONFIG, x[row : row + 1], kind, 3, choice)
        assert torch.equal(alone.digits[0], together.digits[row])
        assert torch.equal(alone.exponent[0], together.exponent[row])
        assert torch.equal(alone.fraction[0], together.fraction[row])


def relative_error(
    kind: str, digits: int, choice: str, x: torch.Tensor, config: EngineConfig = CONFIG
) -> float:
    error = dequantize(config, quantize(config, x, kind, digits, choice)) - x
    return (error.double().square().sum() / x.double().square().sum()).item()


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


def test_lsq_takes_the_best_of_ten_tenths_to_three():
    """Of one digit: each share of the largest element is the best scale of some vectors."""
    x = gaussian(1000, 64).double()
    x = x.sign() * x.abs() ** 3  # a few large elements, so that clipping pays
    x = (x * (2 * CONFIG.conditioned_max / x.abs().max())).round().long()
    largest = x.abs().amax(-1)
    errors = []
    for tenths in range(3, 11):
        step = decode_scale(CONFIG, *encode_scale(CONFIG, largest * tenths * 256 // 10, 8))
        rounded = torch.where(2 * x.abs() > step[..., None], x.sign(), 0) * step[..., None]
        errors.append((x - rounded).square().sum(-1))
    least, best = torch.stack(errors).min(0)
    assert set(best.flatten().tolist()) >= set(range(1, 8))
    found = dequantize(CONFIG, quantize(CONFIG, x, "balanced", 1, "lsq")) - x
    assert (found.square().sum(-1) <= least).all()


@pytest.mark.parametrize("digits", range(2, 6))
def test_balanced_beats_residual_with_fewer_scales(digits):
    x = gaussian(500, 64)
    balanced, residual = (relative_error(kind, digits, "max", x) for kind in KINDS)
    assert balanced < residual


def optimal_ratio(x: torch.Tensor, digits: int, ratios: torch.Tensor) -> float:
    """Scale over mean absolute value with the least total squared error."""
    mean = x.abs().double().mean(-1)
    steps = [(mean * ratio).round().long() for ratio in ratios]
    errors = torch.stack([_squared_error(x, step, digits).double().sum() for step in steps])
    return ratios[errors.argmin()].item()


def test_absmean_constants_are_the_optimum():
    x = gaussian(4000, 64)
    near = torch.linspace(0.85, 1.15, 31, dtype=torch.float64)
    for digits, constant in enumerate(BALANCED_RATIOS, 1):
        assert optimal_ratio(x, digits, constant * near) == pytest.approx(constant, rel=0.03)
    rest = x
    anywhere = torch.logspace(-0.5, 1.5, 81, dtype=torch.float64)
    for constant in RESIDUAL_RATIOS:
        assert optimal_ratio(rest, 1, anywhere) == pytest.approx(constant, rel=0.06)
        step = (rest.abs().double().mean(-1) * constant).round().long()
        rest = rest - step[:, None] * _compare_and_subtract(rest, step, 1)[:, 0]


def test_refusals():
    x = torch.zeros(1, 64, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^kind: 'ternary' is unknown; allowed are balanced, res"):
        quantize(CONFIG, x, "ternary", 3, "max")
    with pytest.raises(ValueError, match=r"^digits: 6 is not allowed; must be 1\.\.5$"):
        quantize(CONFIG, x, "balanced", 6, "max")
    with pytest.raises(ValueError, match=r"^scale: 'min' is unknown; allowed are max, absmean"):
        quantize(CONFIG, x, "balanced", 3, "min")
    with pytest.raises(TypeError, match=r"^x is torch.float32, must be torch.int64$"):
        quantize(CONFIG, x.float(), "residual", 3, "max")
    limit = 2 * CONFIG.conditioned_max
    with pytest.raises(
        ValueError, match=rf"^x holds {limit + 1}; allowed are magnitudes up to {limit}$"
    ):
        quantize(CONFIG, x - limit - 1, "residual", 3, "max")


@every_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("quantizer", config, simulator)
