"""OSCAR: its rotations, its clipped integers, and what it leaves as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_model import tiny_model, with_beginning

from golden.attend.backends import GoldenBackend
from golden.llm import calibration
from golden.llm.sampling import sample_tokens
from golden.llm.watching import LayerInputs, watched
from golden.study import spectral
from golden.study.baselines.codecs import FloatCodec, TokenCodec
from golden.study.baselines.layer import BaselineLayer, LayerRules, TierRule
from golden.study.baselines.oscar import PercentileCodec
from golden.study.baselines.transforms import Rotation
from golden.study.catalog import parse_format
from golden.study.formats import FormatInputs
from golden.study.spectral import SpectralRotations, fit, load_or_fit, spectral_rotation
from kvtq_hw.contract.errors import UserError

# bits reversed, written by hand
REVERSED = {
    8: [0, 4, 2, 6, 1, 5, 3, 7],
    12: [0, 8, 4, 2, 10, 6, 1, 9, 5, 3, 11, 7],
}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments_of(dim: int, seed: int = 0) -> torch.Tensor:
    """Second moments of three heads whose directions have very different size."""
    x = gaussian(3, 50, dim, seed=seed) * torch.arange(1, dim + 1) ** 2 @ gaussian(dim, dim, seed=9)
    return (x.mT @ x).double()


# --- rotations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "block"), [(8, 8), (12, 4)])
def test_rotation_by_hand(dim: int, block: int) -> None:
    """R = U H P: in the eigenvectors, largest first, it is Walsh-Hadamard with reversed bits."""
    moments = moments_of(dim)
    found = spectral_rotation(moments).numpy()
    for head, rotation in zip(moments.numpy(), found, strict=True):
        sizes, directions = np.linalg.eigh(head)
        directions = directions[:, np.argsort(-sizes)]
        mixing = directions.T @ rotation
        for i in range(dim):
            # the eigenvector's sign, which is arbitrary, from the block's first column
            sign = np.sign(mixing[i, REVERSED[dim].index(i // block * block)])
            for j, channel in enumerate(REVERSED[dim]):
                inside = i // block == channel // block
                parity = bin(i % block & channel % block).count("1") % 2
                expected = sign * inside * (-1) ** parity / math.sqrt(block)
                assert mixing[i, j] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dim", [8, 12, 64, 80, 256])
def test_rotations_are_orthogonal(dim: int) -> None:
    rotation = spectral_rotation(moments_of(dim))
    torch.testing.assert_close(
        rotation.mT @ rotation, torch.eye(dim).double().expand(3, dim, dim), rtol=0, atol=1e-12
    )


def test_every_channel_is_equally_important() -> None:
    """The quadratic form of the moments has a constant diagonal after the rotation."""
    moments = moments_of(16)
    rotation = spectral_rotation(moments)
    found = (rotation.mT @ moments @ rotation).diagonal(dim1=-2, dim2=-1)
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    torch.testing.assert_close(found, mean.expand(3, 16))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sinks", [None, [0.5, -1.0, 3.0, 0.0]])
def test_second_moments_by_hand(window: int | None, sinks: list[float] | None) -> None:
    """Two query heads for each of two KV heads, one query at a time."""
    queries, keys, values = gaussian(4, 9, 8), gaussian(2, 9, 8, seed=1), gaussian(2, 9, 8, seed=2)
    inputs = LayerInputs(
        torch.nn.Module(),
        queries,
        keys,
        values,
        0.7,
        None if sinks is None else torch.tensor(sinks),
    )
    found = spectral._second_moments(inputs, window)
    expected = np.zeros((2, 2, 8, 8))
    for head in range(4):
        for t in range(9):
            first = 0 if window is None else max(0, t - window + 1)
            q = queries[head, t].double().numpy()
            weights = np.exp(0.7 * keys[head // 2, first : t + 1].double().numpy() @ q)
            total = weights.sum() + (0 if sinks is None else math.exp(sinks[head]))
            o = weights / total @ values[head // 2, first : t + 1].double().numpy()
            expected[0, head // 2] += np.outer(q, q)
            expected[1, head // 2] += np.outer(o, o)
    torch.testing.assert_close(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_rotations_are_fitted_to_the_models_own_text(monkeypatch) -> None:
    """The moments that `fit` rotates by are those of each layer, with its own window."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        spectral, "spectral_rotation", lambda x: seen.append(x) or spectral_rotation(x)
    )
    language_model = tiny_model(sliding=5)
    assert language_model.windows == (5, None)
    rotations = fit(language_model, 40)
    [moments] = seen
    expected = torch.zeros_like(moments)

    def add(inputs: LayerInputs) -> None:
        window = (5, None)[inputs.layer]
        expected[:, inputs.layer] += spectral._second_moments(inputs, window)

    pieces = sample_tokens(language_model, 40, 1024)
    with watched(language_model, add), torch.no_grad():
        for piece in pieces:
            language_model.model(piece[None], use_cache=False)
    torch.testing.assert_close(moments, expected)
    assert torch.equal(rotations.key_rotations, spectral_rotation(moments[0]).float())
    assert torch.equal(rotations.value_rotations, spectral_rotation(moments[1]).float())
    assert rotations.key_rotations.shape == (2, 2, 8, 8)


def test_a_model_that_computes_no_numbers_is_one_line() -> None:
    language_model = tiny_model()
    with torch.no_grad():
        projection = language_model.model.model.layers[1].self_attn.v_proj.weight
        projection[:] = 3e38
    message = r"^model 'tiny': .*not finite.*$"
    with pytest.raises(UserError, match=message):
        fit(language_model, 40)


# --- rotations in a file --------------------------------------------------------------------------


@pytest.fixture
def fits(tmp_path, monkeypatch) -> list[object]:
    """A cache folder of its own; the models for which rotations were fitted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 60)
    calls: list[object] = []
    monkeypatch.setattr(spectral, "fit", lambda model: calls.append(model) or fit(model))
    return calls


def test_rotations_are_fitted_once_per_model(fits, tmp_path, caplog) -> None:
    first, second = load_or_fit(tiny_model()), load_or_fit(tiny_model())
    assert len(fits) == 1
    assert torch.equal(first.key_rotations, second.key_rotations)
    assert torch.equal(first.value_rotations, second.value_rotations)
    load_or_fit(tiny_model(seed=1))
    load_or_fit(with_beginning(tiny_model()))
    assert len(fits) == 3
    assert len(list(tmp_path.glob("*/rotations/*.safetensors"))) == 3
    assert not caplog.messages


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("no file of the kind", "not a kvtq-hw spectral rotations 1 file"),
        ("another model", "made for another model"),
        ("stretched", "value_rotations: not orthogonal"),
        ("huge", "value_rotations: not orthogonal"),
        ("other heads", "key_rotations: has shape"),
    ],
)
def test_files_that_do_not_fit_are_made_again(fits, tmp_path, caplog, spoil, message) -> None:
    rotations = load_or_fit(tiny_model())
    [file] = tmp_path.glob("*/rotations/*.safetensors")
    fields = {name: x.clone() for name, x in vars(rotations).items()}
    metadata = {"format": spectral._FORMAT, "model_fingerprint": tiny_model().fingerprint}
    if spoil == "no file of the kind":
        metadata["format"] = "another"
    elif spoil == "another model":
        metadata["model_fingerprint"] = tiny_model(seed=1).fingerprint
    elif spoil == "stretched":
        fields["value_rotations"][1, 0] *= 1.01
    elif spoil == "huge":  # squares whose sum is no number in single precision
        fields["value_rotations"] *= 1e30
    else:
        fields["key_rotations"] = fields["key_rotations"][:, :1]
    spectral.write_tensors(file, "test", fields, metadata)
    again = load_or_fit(tiny_model())
    assert len(fits) == 2
    assert torch.equal(again.value_rotations, rotations.value_rotations)
    [line] = caplog.messages
    assert message in line
    assert line.endswith("the rotations are fitted again")


def test_a_cache_folder_that_cannot_be_written(fits, tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_or_fit(tiny_model()).key_rotations.shape == (2, 2, 8, 8)
    [line] = caplog.messages
    assert line.endswith("the next command fits the rotations again")


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [64, 16])
@pytest.mark.parametrize("percent", [92, 96, 100])
def test_integers_by_hand(percent: int, group: int) -> None:
    """Sort, clip, round: one vector at a time, in NumPy."""
    x = gaussian(2, 3, 20, 64, seed=5) ** 3
    codec = PercentileCodec(TokenCodec(2, False, group), percent)
    stored = codec.encode(x)
    assert [y.dtype for y in stored] == [torch.uint8, torch.float16, torch.float16]
    assert [y.shape[-1] for y in stored] == [16, 64 // group, 64 // group]
    found = codec.decode(stored, 64).numpy()
    kept = {92: 58, 96: 61, 100: 63}[percent]  # 64 elements, counted from 0
    for place in np.ndindex(2, 3, 20):
        vector = x[place].numpy()
        limit = np.sort(np.abs(vector))[kept]
        for start in range(0, 64, group):
            clipped = np.clip(vector[start : start + group], -limit, limit)
            low = np.float16(clipped.min())
            scale = np.float16((clipped.max() - np.float32(low)) / np.float32(3))
            codes = np.clip(np.rint((clipped - np.float32(low)) / np.float32(scale)), 0, 3)
            expected = codes * np.float32(scale) + np.float32(low)
            np.testing.assert_allclose(found[place][start : start + group], expected, atol=1e-6)


def test_outputs_are_those_without_rotations_when_nothing_is_rounded() -> None:
    rule = TierRule(FloatCodec(torch.float32), FloatCodec(torch.float32), lambda tokens: tokens)
    rotations = [spectral_rotation(moments_of(8, seed)).float() for seed in (1, 2)]
    keys, values = gaussian(2, 3, 9, 8), gaussian(2, 3, 9, 8, seed=1)
    queries, sinks = gaussian(2, 6, 9, 8, seed=2), gaussian(6, seed=3)
    outputs = []
    for transform in (None, Rotation(*rotations)):
        stored, _ = BaselineLayer(LayerRules(rule, rule, transform)).update(keys, values)
        outputs.append(stored.attend(queries, None, sinks))
        held = stored.keys.read()[0]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(held, keys @ rotations[0])  # it was in use


# --- the format -----------------------------------------------------------------------------------


def inputs_of(language_model) -> FormatInputs:
    return FormatInputs(
        language_model,
        language_model.engine_config(64),
        lambda: pytest.fail("no calibration is needed"),
        lambda model: fit(model, 60),
    )


@pytest.mark.parametrize(
    ("head_dim", "settings", "bits"),
    [
        (256, "", 2 + 2 * 16 / 128),  # the published 2.25
        (64, "", 2 + 2 * 16 / 64),
        (48, "", 2 + 2 * 16 / 48),
        (256, ",group=32", 2 + 2 * 16 / 32),
    ],
)
def test_bits_of_rounded_tokens(head_dim: int, settings: str, bits: float) -> None:
    heads = SpectralRotations(*torch.eye(head_dim).expand(2, 2, 2, head_dim, head_dim))
    language_model = tiny_model(head_dim=head_dim)
    inputs = FormatInputs(
        language_model, language_model.engine_config(64), lambda: None, lambda model: heads
    )
    text = "oscar,sinks=0,window=0" + settings
    cache = parse_format(text, inputs, GoldenBackend()).make_cache()
    keys, values = gaussian(2, 1, 2, 10, head_dim)
    cache.layers[0].update(keys, values)
    layer = cache.layers[0]
    assert layer.stored_elements() == 2 * 2 * 10 * head_dim
    assert 8 * layer.stored_bytes() / layer.stored_elements() == pytest.approx(bits, abs=1e-12)


def test_published_tiers_and_percentiles() -> None:
    language_model = tiny_model(head_dim=32)
    cache_format = parse_format("oscar", inputs_of(language_model), GoldenBackend())
    assert cache_format.name == "oscar"
    for layer, rules in enumerate(cache_format.rules):
        for rule, percent in ((rules.keys, 96), (rules.values, 92)):
            assert rule.short == PercentileCodec(TokenCodec(2, False, 32), percent)
            assert rule.long == FloatCodec(torch.bfloat16)
            assert rule.sinks == 64
            assert [rule.short_tokens(n) for n in (320, 321, 1024)] == [0, 1, 704]
        rotations = fit(language_model, 60)
        assert torch.equal(rules.transform.key_rotations, rotations.key_rotations[layer])
        assert torch.equal(rules.transform.value_rotations, rotations.value_rotations[layer])


@pytest.mark.parametrize("percents", [(1, 100), (100, 9)])
def test_other_percentiles(percents: tuple[int, int]) -> None:
    text = "oscar,clip={}/{}".format(*percents)
    cache_format = parse_format(text, inputs_of(tiny_model()), GoldenBackend())
    [*_, rules] = cache_format.rules
    assert (rules.keys.short.percent, rules.values.short.percent) == percents


def test_rotations_tell_results_apart() -> None:
    language_model = tiny_model()
    identities = {
        parse_format(
            "oscar",
            FormatInputs(
                language_model,
                language_model.engine_config(64),
                lambda: None,
                lambda model, tokens=tokens: fit(model, tokens),
            ),
            GoldenBackend(),
        ).identity()
        for tokens in (40, 41, 41)
    }
    assert len(identities) == 2
