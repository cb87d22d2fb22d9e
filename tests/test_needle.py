"""Needles in a haystack: where they are hidden, and what counts as retrieved."""

from __future__ import annotations

import pytest
import torch
from tiny_model import prompt, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from golden.attend.backends import GoldenBackend
from golden.llm.calibration import calibrate
from golden.llm.models import LanguageModel
from golden.study.catalog import parse_format
from golden.study.formats import FormatInputs
from golden.study.needle import NEEDLES, Haystack, make_haystack, retrieve
from kvtq_hw.contract.errors import UserError


def spelling_model() -> LanguageModel:
    """The tiny model with a tokenizer of characters, which can spell needles."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {character: index + 2 for index, character in enumerate(characters)}
    vocabulary |= {"<pad>": 0, "<unk>": 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    model = tiny_model().model
    model.config.max_position_embeddings = 2000
    return LanguageModel("tiny", model, fast)


def test_needles_are_where_they_are_said_to_be():
    language_model = spelling_model()
    segment = torch.full((1000,), 70)  # a letter that no needle has in capitals
    haystack = make_haystack(language_model, segment, seed=3)
    assert haystack.tokens.shape == (1000,)
    text = language_model.tokenizer.decode(haystack.tokens)
    letter = language_model.tokenizer.decode([70])
    for index, (question, answer) in enumerate(
        zip(haystack.questions, haystack.answers, strict=True)
    ):
        asked = language_model.tokenizer.decode(question)
        number = language_model.tokenizer.decode(answer)
        assert asked.startswith("\nThe secret number of ")
        assert number[0] == " "
        assert 1000 <= int(number) < 10000
        assert text.count(f"{asked}{number}.\n") == 1
        before = text[: text.index(asked)].count(letter)
        room = text.count(letter)
        assert abs(before - (2 * index + 1) / 16 * room) <= 1
    assert make_haystack(language_model, segment, seed=3).answers == haystack.answers
    assert make_haystack(language_model, segment, seed=4).answers != haystack.answers


def test_a_haystack_begins_as_its_segment_does():
    segment = torch.full((1000,), 70)
    segment[0] = 127
    haystack = make_haystack(spelling_model(), segment, seed=3)
    assert (haystack.tokens == 127).nonzero().tolist() == [[0]]


def test_a_context_that_is_too_short():
    with pytest.raises(UserError, match=r"^context: 400 is too short to hide 8 needles of \d+ tok"):
        make_haystack(spelling_model(), torch.full((400,), 70), seed=0)


def test_questions_need_positions_too():
    language_model = spelling_model()
    language_model.model.config.max_position_embeddings = 1010
    with pytest.raises(
        UserError, match=r"^context: 1000 tokens and \d+ of a needle's question are"
    ):
        make_haystack(language_model, torch.full((1000,), 70), seed=0)


def haystack_with(language_model: LanguageModel, right: list[bool]) -> Haystack:
    """Questions of different lengths; the answers are the model's own where `right` says so."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(2, 128, (40,), generator=generator)
    questions, answers = [], []
    for index, is_right in enumerate(right):
        question = torch.randint(2, 128, (3 + index,), generator=generator).tolist()
        sequence = tokens.tolist() + question
        answer = []
        for _ in range(2):
            with torch.inference_mode():
                logits = language_model.model(torch.tensor([sequence])).logits[0, -1]
            answer.append(int(logits.argmax()))
            sequence.append(answer[-1])
        if not is_right:
            answer[1] = 2 + (answer[1] + 1) % 126
        questions.append(tuple(question))
        answers.append(tuple(answer))
    return Haystack(tokens, tuple(questions), tuple(answers))


RIGHT = [True, False, True, True, False, False, True, True]


@pytest.mark.parametrize("chunk", [7, 40])
def test_retrieved_is_what_greedy_decoding_answers(chunk):
    language_model = tiny_model()
    told = []
    haystack = haystack_with(language_model, RIGHT)
    found = retrieve(language_model, haystack, None, chunk=chunk, on_tokens=told.append)
    assert found == RIGHT
    assert sum(told) == 40


@pytest.mark.parametrize(
    ("code", "least"),
    [
        ("balanced:5/5", 4),
        ("balanced:5/5,sinks=2,window=8", 4),
        ("int8", 4),
        ("fp16", 5),
        ("transformers:4", 1),  # its 4 bits leave little of a model of random weights
    ],
)
def test_a_good_format_retrieves_what_the_model_does(code, least):
    if code.startswith("transformers:"):
        pytest.importorskip("optimum.quanto")
    language_model = tiny_model(head_dim=32)
    calibration = calibrate(language_model, prompt(60), tokens=50)
    config = language_model.engine_config(64)
    inputs = FormatInputs(language_model, config, lambda: calibration)
    cache_format = parse_format(code, inputs, GoldenBackend())
    found = retrieve(language_model, haystack_with(language_model, RIGHT), cache_format)
    assert len(found) == NEEDLES
    assert sum(found) >= least
    assert [f for f, right in zip(found, RIGHT, strict=True) if not right] == [False] * 3
