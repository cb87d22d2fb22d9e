"""Quality through the cache: segments, the reference, scores, and what they are summed up to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny_model import prompt, tiny_model, with_beginning, with_window

from golden.attend.backends import FloatBackend, GoldenBackend
from golden.attend.single_precision import SinglePrecisionBackend
from golden.llm.calibration import calibrate
from golden.llm.models import load_model
from golden.study.catalog import parse_format
from golden.study.formats import CacheFormat, FormatInputs
from golden.study.quality import (
    Quality,
    SegmentScore,
    cut_segments,
    documentation_text,
    evaluate_reference,
    evaluate_segment,
    feed,
    summarize,
)
from golden.study.spectral import fit
from kvtq_hw.contract.errors import UserError

LANGUAGE_MODEL = tiny_model()
CALIBRATION = calibrate(LANGUAGE_MODEL, prompt(60), tokens=50)
INPUTS = FormatInputs(
    LANGUAGE_MODEL,
    LANGUAGE_MODEL.engine_config(64),
    lambda: CALIBRATION,
    lambda model: fit(model, 60),
)
TEXT = prompt(200, seed=3)
TOKENS = cut_segments(LANGUAGE_MODEL, TEXT, 48, 1)[0]
TERNARY = (
    "balanced:3/2",
    "residual:2/2",
    "balanced:1/1,sinks=2,window=8",
    "balanced:2/1,sinks=2,window=8,feedback",
)
BASELINES = (
    "int3",
    "int2,conditioned,sinks=2,window=8",
    "kivi:4,group=8,window=8",
    "oscar,sinks=2,window=8",
)


def parse(code: str, backend=None) -> CacheFormat:
    return parse_format(code, INPUTS, backend or SinglePrecisionBackend())


def predictions(cache_format: CacheFormat) -> torch.Tensor:
    """Log-probabilities through a cache of a format, [T - 1, vocabulary]."""
    with LANGUAGE_MODEL.attending_with(cache_format.attention):
        parts = feed(LANGUAGE_MODEL, TOKENS, cache_format.make_cache(), 16)
        return torch.cat([logits.log_softmax(-1) for _, logits in parts])


# --- segments -------------------------------------------------------------------------------------


def test_segments_are_consecutive_pieces_of_the_text():
    segments = cut_segments(LANGUAGE_MODEL, TEXT, 30, 3)
    ids = LANGUAGE_MODEL.tokenizer(TEXT).input_ids
    assert torch.cat(segments).tolist() == ids[:90]
    assert {len(segment) for segment in segments} == {30}


def test_a_long_text_is_not_tokenized_to_its_end():
    calls = []

    class Counting:
        bos_token_id = None

        def __call__(self, text: str, **options: object):
            calls.append(len(text))
            return LANGUAGE_MODEL.tokenizer(text, **options)

    counting = type(LANGUAGE_MODEL)("tiny", LANGUAGE_MODEL.model, Counting())
    text = prompt(20000)
    segments = cut_segments(counting, text, 40, 2)
    assert torch.cat(segments).tolist() == LANGUAGE_MODEL.tokenizer(text).input_ids[:80]
    assert calls == [1800]


def test_each_segment_begins_as_the_model_wants_it():
    """The first token counts as one of the segment's; the others continue the text."""
    language_model = with_beginning(LANGUAGE_MODEL)
    segments = cut_segments(language_model, TEXT, 30, 3)
    assert {len(segment) for segment in segments} == {30}
    assert {int(segment[0]) for segment in segments} == {127}
    ids = language_model.tokenizer(TEXT, add_special_tokens=False).input_ids
    assert torch.cat([segment[1:] for segment in segments]).tolist() == ids[: 3 * 29]
    with pytest.raises(UserError) as caught:
        cut_segments(language_model, TEXT, 101, 3)
    assert str(caught.value) == "text has 200 tokens; 3 segments of 101 need 300"


def test_smollm2s_segments_have_no_first_token_of_their_own(smollm2_wheel):
    """To the token, what was measured before any model had one."""
    language_model = load_model("smollm2")
    assert language_model.beginning == ()
    segments = cut_segments(language_model, documentation_text(), 256, 4)
    ids = language_model.tokenizer(documentation_text()[:20000], add_special_tokens=False).input_ids
    assert torch.cat(segments).tolist() == ids[:1024]


def test_gemma_begins_texts(gemma_wheels):
    """Without its first token it predicts badly: 68 instead of 37 on WikiText-2."""
    language_model = load_model("gemma3-270m", ternary=False)
    [segment] = cut_segments(language_model, documentation_text(), 64, 1)
    assert language_model.beginning == (2,)
    assert segment[0] == 2
    reference = evaluate_reference(language_model, segment)
    bare = evaluate_reference(language_model, segment[1:])
    assert reference.score.nll < bare.score.nll


@pytest.mark.parametrize("context", [1, 257])
def test_a_context_that_the_model_does_not_have(context):
    with pytest.raises(UserError) as caught:
        cut_segments(LANGUAGE_MODEL, TEXT, context, 1)
    assert str(caught.value) == (
        f"context: {context} is not allowed; must be 2..256, the positions of model 'tiny'"
    )


def test_a_text_that_is_too_short():
    with pytest.raises(UserError) as caught:
        cut_segments(LANGUAGE_MODEL, TEXT, 100, 3)
    assert str(caught.value) == "text has 200 tokens; 3 segments of 100 need 300"
    assert len(cut_segments(LANGUAGE_MODEL, TEXT, 100, 2)) == 2


# --- scores ---------------------------------------------------------------------------------------


def test_reference_is_the_model_alone():
    reference = evaluate_reference(LANGUAGE_MODEL, TOKENS, chunk=17)
    with torch.inference_mode():
        logits = LANGUAGE_MODEL.model(TOKENS[None]).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, TOKENS[1:], reduction="sum").item()
    assert reference.score.nll == pytest.approx(expected, rel=1e-5)
    assert reference.score.tokens == reference.score.same_top1 == 47
    assert reference.score.kld == 0
    assert reference.score.stored_elements == 2 * 2 * 2 * 48 * 8
    assert reference.score.stored_bytes == 4 * reference.score.stored_elements


@pytest.mark.parametrize("code", [*TERNARY, *BASELINES])
def test_scores_by_hand_token_by_token(code):
    """One token at a time through the cache, and the definitions of every number."""
    reference = evaluate_reference(LANGUAGE_MODEL, TOKENS)
    cache_format = parse(code)
    cache = cache_format.make_cache()
    logits = []
    with LANGUAGE_MODEL.attending_with(cache_format.attention), torch.inference_mode():
        for token in TOKENS:
            step = LANGUAGE_MODEL.model(token[None, None], past_key_values=cache)
            logits.append(step.logits[0, 0])
    found = torch.stack(logits[:-1]).log_softmax(-1)
    with torch.inference_mode():
        expected = LANGUAGE_MODEL.model(TOKENS[None]).logits[0, :-1].log_softmax(-1)
    nll = -found[torch.arange(47), TOKENS[1:]].sum().item()
    kld = torch.nn.functional.kl_div(found, expected, reduction="sum", log_target=True).item()
    same = (found.argmax(-1) == expected.argmax(-1)).sum().item()
    for chunk in (1, 5, 16, 48):
        score = evaluate_segment(LANGUAGE_MODEL, reference, cache_format, chunk=chunk)
        assert score.nll == pytest.approx(nll, rel=1e-4), chunk
        assert score.kld == pytest.approx(kld, rel=1e-3), chunk
        assert score.same_top1 == same, chunk
        assert (score.stored_bytes, score.stored_elements) == cache_format.stored(cache)
    assert score.kld > 0.01  # the code was in use


@pytest.mark.parametrize("code", [*TERNARY, *BASELINES])
def test_scores_of_a_model_with_sliding_windows(code):
    """Chunks of any size give the scores of token by token, far from those without windows."""
    model = with_window(LANGUAGE_MODEL, 11)
    assert model.windows == (11, 11)
    calibration = calibrate(model, prompt(60), tokens=50)
    config = model.engine_config(64)
    inputs = FormatInputs(model, config, lambda: calibration, lambda model: fit(model, 60))
    cache_format = parse_format(code, inputs, SinglePrecisionBackend())
    reference = evaluate_reference(model, TOKENS)
    with torch.inference_mode():
        plain = model.model(TOKENS[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    assert (reference.log_probabilities - plain).abs().max() < 1e-4
    expected = evaluate_segment(model, reference, cache_format, chunk=1)
    for chunk in (5, 16, 48):
        score = evaluate_segment(model, reference, cache_format, chunk=chunk)
        assert score.nll == pytest.approx(expected.nll, rel=1e-4), chunk
        assert score.kld == pytest.approx(expected.kld, rel=1e-3), chunk
        assert score.same_top1 == expected.same_top1, chunk
        assert score.stored_bytes == expected.stored_bytes
    assert expected.kld > 0.01  # the code was in use
    full = evaluate_reference(LANGUAGE_MODEL, TOKENS)
    assert evaluate_segment(model, full, cache_format).kld > 2 * expected.kld


@pytest.mark.parametrize("code", TERNARY)
def test_integer_attention_is_close_to_float(code):
    """Rounding in the engine is small beside rounding in the cache.

    The widths are the smallest whose rounding costs about half a per cent of perplexity where the
    shortest code costs twelve (docs/quality.md, "Widths of the engine"): a 24th. The divergence of
    predictions is linear in the energy of the error, as is what it costs, so a 24th it is here.
    """
    reference = evaluate_reference(LANGUAGE_MODEL, TOKENS)
    scores = {
        name: evaluate_segment(LANGUAGE_MODEL, reference, parse(code, backend))
        for name, backend in (
            ("integer", GoldenBackend()),
            ("double", FloatBackend()),
            ("single", SinglePrecisionBackend()),
        )
    }
    assert parse(code, GoldenBackend()).arithmetic == "integer"
    assert parse(code).arithmetic == "float"
    assert scores["single"].nll == pytest.approx(scores["double"].nll, rel=1e-5)
    in_float = replace(reference, log_probabilities=predictions(parse(code, FloatBackend())))
    engine = evaluate_segment(LANGUAGE_MODEL, in_float, parse(code, GoldenBackend()))
    assert 0 < engine.kld < scores["double"].kld / 24
    assert scores["integer"].stored_bytes == scores["double"].stored_bytes


def test_progress_is_told_in_tokens():
    told = []
    evaluate_reference(LANGUAGE_MODEL, TOKENS, chunk=20, on_tokens=told.append)
    assert told == [20, 20, 8]


def test_the_model_is_left_as_it_was():
    before = LANGUAGE_MODEL.model.config._attn_implementation
    evaluate_segment(LANGUAGE_MODEL, evaluate_reference(LANGUAGE_MODEL, TOKENS), parse("int3"))
    assert LANGUAGE_MODEL.model.config._attn_implementation == before


def test_summary_by_hand():
    scores = [
        SegmentScore(10, 20.0, 1.0, 9, 30, 80, 3),
        SegmentScore(30, 90.0, 2.0, 21, 10, 80, 1),
    ]
    references = [SegmentScore(10, 19.0, 0, 10, 0, 80, 0), SegmentScore(30, 85.0, 0, 30, 0, 80, 0)]
    assert summarize(scores, references) == Quality(
        perplexity=math.exp(110 / 40),
        perplexity_ratio=pytest.approx(math.exp(6 / 40), rel=1e-12),
        kld=3 / 40,
        top1_agreement=30 / 40,
        bits_per_element=8 * 40 / 160,
        tokens=40,
        saturated=4,
        saturated_share=4 / 160,
    )


def test_summary_of_different_segments():
    score, other = SegmentScore(10, 1.0, 0.0, 1, 1, 1, 0), SegmentScore(11, 1.0, 0.0, 1, 1, 1, 0)
    with pytest.raises(ValueError, match=r"^scores and references are not of the same segments$"):
        summarize([score], [other])


# --- identities -----------------------------------------------------------------------------------


def test_identity_tells_configurations_and_calibrations_apart():
    other = INPUTS.config.replace(weight_bits=9)
    again = calibrate(LANGUAGE_MODEL, prompt(60), tokens=40)
    identities = {
        parse_format("balanced:3/2", inputs, GoldenBackend()).identity()
        for inputs in (
            INPUTS,
            FormatInputs(LANGUAGE_MODEL, other, lambda: CALIBRATION),
            FormatInputs(LANGUAGE_MODEL, INPUTS.config, lambda: again),
        )
    }
    assert len(identities) == 3
    same = FormatInputs(LANGUAGE_MODEL, INPUTS.config, lambda: CALIBRATION)
    assert parse_format("balanced:3/2", same, GoldenBackend()).identity() in identities
