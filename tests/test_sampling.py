"""Text that a model writes itself: repeatable, as long as asked for, and from its predictions."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_model, with_beginning

from golden.llm.sampling import sample_tokens


@pytest.mark.parametrize(
    ("tokens", "length", "lengths"),
    [(50, 20, [20, 20, 10]), (40, 20, [20, 20]), (7, 20, [7]), (300, 999, [256, 44])],
)
def test_lengths(tokens, length, lengths):
    """As many tokens as asked for, in sequences no longer than the model's 256 positions."""
    found = sample_tokens(tiny_model(), tokens, length)
    assert [len(sequence) for sequence in found] == lengths
    assert all(sequence.dtype == torch.int64 for sequence in found)


def test_the_seed_decides():
    first, again, other = (
        torch.cat(sample_tokens(tiny_model(), 60, 30, seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_first_tokens_are_ordinary():
    language_model = tiny_model()
    sequences = sample_tokens(language_model, 4000, 2)
    firsts = {int(sequence[0]) for sequence in sequences}
    assert firsts == set(range(2, 128))  # all but <pad> and <unk>


def test_a_model_with_a_first_token_begins_with_it():
    """The second token is drawn from the model's predictions, as every other."""
    language_model = with_beginning(tiny_model())
    sequences = torch.stack(sample_tokens(language_model, 4000, 2))
    assert set(sequences[:, 0].tolist()) == {127}
    with torch.inference_mode():
        predicted = language_model.model(torch.tensor([[127]])).logits[0, 0].float().softmax(-1)
    top = predicted.argmax()
    share = (sequences[:, 1] == top).double().mean()
    assert abs(share - predicted[top]) < 4 * (predicted[top] * (1 - predicted[top]) / 2000).sqrt()


def test_tokens_follow_the_predictions():
    """How often a token follows another is, within four standard errors, its probability."""
    language_model = tiny_model()
    sequences = torch.stack(sample_tokens(language_model, 16000, 2))
    with torch.inference_mode():
        probabilities = language_model.model(sequences[:, :1]).logits[:, 0].float().softmax(-1)
    top = probabilities.argmax(-1)
    expected = probabilities.gather(-1, top[:, None])[:, 0]
    hits = (sequences[:, 1] == top).double()
    error = (expected * (1 - expected)).sum().sqrt()
    assert abs(hits.sum() - expected.sum()) < 4 * error
    assert 0.02 < hits.mean() < 0.9  # neither greedy nor blind
