"""Equalizers: no score and no output changes, and what calibration chooses makes powers equal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from golden.equalizer import Equalizer
from golden.llm.channel_power import KEY_EXPONENT, ChannelPower


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_scores_outputs_and_projections_stay_the_same():
    equalizer = Equalizer(normal(2, 6, seed=1).exp(), normal(2, 6, 6, seed=2))
    keys, values = normal(3, 2, 7, 6, seed=3), normal(3, 2, 7, 6, seed=4)
    queries, projection = normal(3, 2, 4, 5, 6, seed=5), normal(2, 4, 8, 6, seed=6)
    scores = equalizer.queries(queries) @ equalizer.keys(keys)[:, :, None].mT
    torch.testing.assert_close(scores, queries @ keys[:, :, None].mT)
    weights = scores.softmax(-1)
    stored = weights @ equalizer.values(values)[:, :, None]
    outputs = weights @ values[:, :, None]
    torch.testing.assert_close(equalizer.outputs(stored), outputs)
    torch.testing.assert_close(
        equalizer.projection(projection) @ stored.mT, projection @ outputs.mT
    )
    torch.testing.assert_close(equalizer.unmapped_keys(equalizer.keys(keys)), keys)
    torch.testing.assert_close(equalizer.unmapped_values(equalizer.values(values)), values)


@pytest.mark.parametrize(
    ("scales", "basis", "message"),
    [
        (torch.ones(2, 4), torch.eye(4).expand(3, 4, 4), r"^value_basis has shape \(3, 4, 4\), "),
        (torch.zeros(2, 4), torch.eye(4).expand(2, 4, 4), "^key_scales: an element is not pos"),
        (torch.ones(2, 4), torch.ones(2, 4, 4), "^value_basis: a matrix has no inverse"),
    ],
)
def test_factors_that_are_none(scales, basis, message):
    with pytest.raises(ValueError, match=message):
        Equalizer(scales.double(), basis.double())


def power_of(keys: torch.Tensor, values: torch.Tensor, pieces: int = 1) -> ChannelPower:
    power = ChannelPower()
    for pair in zip(keys.chunk(pieces, 1), values.chunk(pieces, 1), strict=True):
        power.add(SimpleNamespace(keys=pair[0], values=pair[1]))
    return power


SIZES = torch.tensor([[100.0, 1, 1, 1, 3, 1, 1, 1], [1, 2, 1, 1, 1, 1, 1, 50]]).double()
PARTNERS = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
ALONE = torch.arange(8)


def test_powers_of_key_pairs_come_closer():
    """Of the pair, without the mean, and by the chosen exponent."""
    keys = normal(2, 4000, 8, seed=1) * SIZES[:, None] + 1000
    power = power_of(keys, keys, pieces=2)
    assert power.tokens == 4000
    scales = power.equalizer(PARTNERS).key_scales
    assert torch.equal(scales, scales[:, PARTNERS])
    torch.testing.assert_close(scales.log().mean(-1), torch.zeros(2).double())
    pairs = (SIZES.square() + SIZES[:, PARTNERS].square()) / 2
    expected = pairs ** (KEY_EXPONENT / 2)
    expected = expected / expected.log().mean(-1, keepdim=True).exp()
    torch.testing.assert_close(scales, expected, rtol=0.05, atol=0)
    alone = power.equalizer(ALONE).key_scales
    assert alone[0, 0] > 5 * alone[0, 4]


def test_the_first_tokens_of_each_piece_do_not_count():
    keys, values = normal(2, 40, 8, seed=1) * SIZES[:, None], normal(2, 40, 8, seed=2)
    expected = power_of(keys, values, pieces=2).equalizer(PARTNERS)
    for first in (slice(0, 4), slice(20, 24)):
        keys[:, first], values[:, first] = 1e6, 1e6
    power = power_of(keys, values, pieces=2)
    found = power.equalizer(PARTNERS)
    assert torch.equal(found.key_scales, expected.key_scales)
    assert torch.equal(found.value_basis, expected.value_basis)
    assert (power.largest_key, power.largest_value) == (1e6, 1e6)


@pytest.mark.parametrize("channels", [slice(0, 1), slice(0, 6), slice(0, 8)])
@pytest.mark.parametrize("tokens", [3, 4, 5, 100])
def test_channels_without_power_and_short_texts_give_finite_factors(channels, tokens):
    vectors = normal(2, tokens, 8, seed=1)
    vectors[:, :, channels] = 0
    equalizer = power_of(vectors, vectors).equalizer(PARTNERS)
    for factors in (equalizer.key_scales, equalizer.value_basis):
        assert torch.isfinite(factors).all()
    # a channel without power on one text may have some on the next
    assert equalizer.key_scales.max() < 100 * equalizer.key_scales.min()


def test_powers_of_values_come_closer():
    """Those of channels become equal where channels are independent, a mixture's come closer."""
    values = normal(2, 4000, 8, seed=1) * SIZES[:, None]
    basis = power_of(values, values).equalizer(ALONE).value_basis
    torch.testing.assert_close(torch.linalg.det(basis), torch.ones(2).double())
    powers = (values @ basis).square().mean(1)
    assert (powers.amax(-1) < 1.2 * powers.amin(-1)).all()
    mixed = values @ torch.linalg.qr(normal(8, 8, seed=2))[0]
    mapped = power_of(mixed, mixed).equalizer(ALONE).values(mixed)
    before, after = (x.square().mean((1, 2)) for x in (mixed, mapped))
    assert (after < before / 3).all()
