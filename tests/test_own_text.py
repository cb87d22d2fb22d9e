"""Texts that models wrote: kept ones are found, are the models' own, and change no calibration."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_model, with_beginning
from torch.nn.functional import cross_entropy

from golden.llm import own_text
from golden.llm.calibration import DEFAULT_TOKENS, SEGMENT, calibrate
from golden.llm.models import LanguageModel, load_model
from golden.llm.sampling import sample_tokens


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(own_text, "_FOLDER", str(tmp_path))
    return tmp_path


def test_a_kept_text_is_what_would_be_sampled(folder):
    model = tiny_model()
    own_text.save_own_text(model, 40, 20, folder)
    found = own_text.own_text(model, 40, 20)
    assert torch.equal(torch.stack(found), torch.stack(sample_tokens(model, 40, 20)))
    assert found[0].dtype == torch.int64


def test_a_kept_text_is_not_sampled_again(folder, monkeypatch):
    model = tiny_model()
    own_text.save_own_text(model, 40, 20, folder)
    monkeypatch.setattr(own_text, "sample_tokens", None)
    assert len(own_text.own_text(model, 40, 20)) == 2


@pytest.mark.parametrize(
    ("model", "tokens", "length"),
    [
        (tiny_model(seed=1), 40, 20),
        (with_beginning(tiny_model()), 40, 20),
        (tiny_model(), 60, 20),
        (tiny_model(), 40, 40),
    ],
    ids=["weights", "beginning", "tokens", "length"],
)
def test_another_text_is_sampled(folder, model, tokens, length):
    own_text.save_own_text(tiny_model(), 40, 20, folder)
    assert own_text.kept_text(model, tokens, length) is None
    assert sum(map(len, own_text.own_text(model, tokens, length))) == tokens


def test_calibration_on_a_kept_text(folder, monkeypatch):
    model = tiny_model()
    sampled = calibrate(model, tokens=DEFAULT_TOKENS // 8)
    monkeypatch.setattr("golden.llm.calibration.SEGMENT", 256)
    own_text.save_own_text(model, DEFAULT_TOKENS // 8, 256, folder)
    monkeypatch.setattr("golden.llm.calibration.sample_tokens", None)
    kept = calibrate(model, tokens=DEFAULT_TOKENS // 8)
    assert kept.text_digest == sampled.text_digest
    assert torch.equal(kept.value_bases, sampled.value_bases)


def surprise(language_model: LanguageModel, sequences: torch.Tensor) -> tuple[float, float]:
    """Mean of (log-loss - entropy) of the predictions over the tokens, and its standard error.

    A text drawn from the predictions has a mean of zero.
    """
    with torch.inference_mode():
        logits = language_model.model(sequences, use_cache=False).logits[:, :-1].flatten(0, 1)
    losses = cross_entropy(logits, sequences[:, 1:].flatten(), reduction="none")
    logarithms = logits.log_softmax(-1)
    difference = (losses + (logarithms.exp() * logarithms).sum(-1)).double()
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_the_package_has_texts_that_the_models_wrote(name, request):
    request.getfixturevalue({"smollm2": "smollm2_wheel", "gemma3-270m": "gemma_wheels"}[name])
    language_model = load_model(name)
    kept = own_text.kept_text(language_model, DEFAULT_TOKENS, SEGMENT)
    assert kept is not None
    sequences = torch.stack(kept)
    assert sequences.shape == (DEFAULT_TOKENS // SEGMENT, SEGMENT)
    if language_model.beginning:
        assert sequences[:, :1].unique().tolist() == list(language_model.beginning)
    mean, error = surprise(language_model, sequences[:, :128])
    assert abs(mean) < 4 * error
    strange, _ = surprise(language_model, sequences.flip(1)[:, :128])
    assert strange > 10 * error
