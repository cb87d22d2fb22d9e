"""The attention function under transformers: causal, independent of the batch, correct in heads."""

from __future__ import annotations

import pytest
import torch
from tiny_model import prompt, tiny_model

from golden.attend.attention import ATTENTION, ternary_attention
from golden.attend.backends import (
    CheckedBackend,
    FloatBackend,
    GoldenBackend,
    MeasuredBackend,
    MismatchError,
    SplitBackend,
)
from golden.cache.attention_job import AttentionJob
from golden.cache.ternary_cache import TernaryCache, TernaryCacheLayer
from golden.conditioning import Conditioning
from golden.engine import Attention
from golden.llm.models import LanguageModel
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

TINY = load_config("tiny").replace(query_bits=16, score_bits=24, weight_bits=16)
CODE = CacheCode("balanced", 5, 5, scale="max")
CONDITIONING = [Conditioning(True, torch.arange(-4000, 4000, 500).reshape(2, 8), -12, -12)] * 2


class Recorder:
    """A backend that keeps what it computed."""

    def __init__(self, backend) -> None:
        self.backend = backend
        self.jobs: list[AttentionJob] = []
        self.results: list[torch.Tensor] = []

    def attend(self, job: AttentionJob):
        result = self.backend.attend(job)
        self.jobs.append(job)
        self.results.append(result if isinstance(result, torch.Tensor) else result.values)
        return result


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    loaded = tiny_model()
    loaded.model.set_attn_implementation(ATTENTION)
    return loaded


def new_cache(backend=None, config=TINY, code=CODE, conditioning=CONDITIONING) -> TernaryCache:
    return TernaryCache(config, code, conditioning, backend or GoldenBackend())


def logits(language_model: LanguageModel, ids: torch.Tensor, cache: TernaryCache, **options):
    with torch.inference_mode():
        return language_model.model(ids, past_key_values=cache, **options).logits


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 128, (1, length), generator=torch.Generator().manual_seed(seed))


def test_logits_are_near_those_of_the_unquantized_model(language_model):
    """5 digits leave a relative error of 0.06 in this model's logits (float backend: 0.06 as well).

    A prefill that is not causal gives 1.05, heads in the wrong order no less.
    """
    plain = tiny_model().model
    ids = tokens(40)
    with torch.inference_mode():
        expected = plain(ids).logits
    found = logits(language_model, ids, new_cache())
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.12


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 1, 6], [11, 1]])
def test_prefill_in_pieces_gives_the_same_integers(language_model, pieces):
    """Causal, and the same contract whether a token comes alone or in a prefill of many."""
    ids = tokens(12, seed=3)
    recorder, start = Recorder(GoldenBackend()), 0
    cache = new_cache(recorder)
    for length in pieces:
        logits(language_model, ids[:, start : start + length], cache)
        start += length
    # layer 0 sees the same hidden states in every split, so its integers must be the same
    found = torch.cat(
        [r for r, job in zip(recorder.results, recorder.jobs, strict=True) if job.layer_index == 0],
        -2,
    )
    reference = Recorder(GoldenBackend())
    logits(language_model, ids, new_cache(reference))
    assert torch.equal(found, reference.results[0])


def test_an_attention_output_does_not_depend_on_later_tokens(language_model):
    ids = tokens(12, seed=3)
    changed = ids.clone()
    changed[0, 8:] = 5
    found = logits(language_model, ids, new_cache())
    other = logits(language_model, changed, new_cache())
    assert torch.equal(found[:, :8], other[:, :8])
    assert not torch.equal(found[:, 8:], other[:, 8:])


def test_left_padding_and_batch_companions_change_no_bit():
    """Attention of each sequence of a padded batch equals its attention alone."""
    generator = torch.Generator().manual_seed(1)
    lengths, longest = (11, 4, 7), 11
    query = torch.randn(3, 4, longest, 8, generator=generator)
    keys, values = torch.randn(2, 3, 2, longest, 8, generator=generator)
    recorder = Recorder(GoldenBackend())
    module = torch.nn.Module()
    module.layer_idx = 0
    layer = TernaryCacheLayer(TINY, CODE, CONDITIONING[0], recorder)
    passes = layer.update(keys, values)
    real = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = (causal & real[:, None, :])[:, None]
    outputs, _ = ternary_attention(module, query, *passes, mask)
    for row, length in enumerate(lengths):
        alone = TernaryCacheLayer(TINY, CODE, CONDITIONING[0], GoldenBackend())
        part = slice(longest - length, None)
        passes = alone.update(keys[row : row + 1, :, part], values[row : row + 1, :, part])
        expected, _ = ternary_attention(module, query[row : row + 1, :, part], *passes, None)
        assert torch.equal(outputs[row, part], expected[0])
        assert not outputs[row, : longest - length].any()


def test_generate_with_padding_continues_as_each_prompt_alone(language_model):
    """The same through `generate()`, masks made by transformers."""
    prompts = [prompt(9, seed=1), prompt(3, seed=2)]
    tokenizer = language_model.tokenizer
    options = {"max_new_tokens": 6, "do_sample": False}
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = language_model.model.generate(**batch, past_key_values=new_cache(), **options)[
        :, -6:
    ]
    for row, text in enumerate(prompts):
        alone = language_model.model.generate(
            **tokenizer(text, return_tensors="pt"), past_key_values=new_cache(), **options
        )[0, -6:]
        assert torch.equal(together[row], alone)


def test_beam_search_runs_on_the_cache(language_model):
    inputs = language_model.tokenizer(prompt(5), return_tensors="pt")
    cache = new_cache()
    before = cache.layers[0].revision
    found = language_model.model.generate(
        **inputs, past_key_values=cache, max_new_tokens=4, num_beams=3, do_sample=False
    )
    assert found.shape == (1, 9)
    assert cache.layers[0].revision is not before


def test_queries_in_pieces_give_the_same_integers(language_model, monkeypatch):
    whole, pieces = Recorder(GoldenBackend()), Recorder(GoldenBackend())
    logits(language_model, tokens(30), new_cache(whole))
    monkeypatch.setattr("golden.attend.backends._CHUNK_ELEMENTS", 1000)
    logits(language_model, tokens(30), new_cache(pieces))
    for a, b in zip(whole.results, pieces.results, strict=True):
        assert torch.equal(a, b)


def test_a_cache_of_another_kind_is_refused(language_model):
    message = (
        r"^the model's cache gave the attention a Tensor; 'kvtq_ternary' needs a TernaryCache: "
        r"pass past_key_values=golden\.llm\.decoding\.make_cache\(\.\.\.\)$"
    )
    with pytest.raises(TypeError, match=message):
        language_model.model(tokens(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softcap": 30.0}, r"^softcap: 30.0 is not supported; must be None$"),
        (
            {"sliding_window": 4},
            r"^sliding_window: 4 is not that of the cache, None; give",
        ),
        ({"dropout": 0.1}, r"^dropout: 0.1 is not supported; must be 0$"),
    ],
)
def test_attention_variants_are_refused(options, message):
    layer = TernaryCacheLayer(TINY, CODE, CONDITIONING[0], GoldenBackend())
    passes = layer.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))
    with pytest.raises(ValueError, match=message):
        ternary_attention(torch.nn.Module(), torch.zeros(1, 4, 1, 8), *passes, None, **options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (2, 4, 1, 8),
            r"^queries have batch, heads and head dimension \(2, 4, 8\); the cache and ",
        ),
        ((1, 6, 1, 8), r"\(1, 6, 8\); the cache and configuration 'tiny' need \(1, 4, 8\)$"),
        ((1, 4, 1, 16), r"\(1, 4, 16\); the cache"),
        ((1, 4, 3, 8), r"^queries are of 3 tokens; at most the 2 that were appended last can atte"),
    ],
)
def test_queries_of_something_else_are_refused(shape, message):
    layer = TernaryCacheLayer(TINY, CODE, CONDITIONING[0], GoldenBackend())
    passes = layer.update(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8))
    with pytest.raises(ValueError, match=message):
        ternary_attention(torch.nn.Module(), torch.zeros(shape), *passes, None)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 1, 2, 2), r"torch.float32 \(1, 1, 2, 2\) is not supported"),
        (torch.tensor([[[[True, False], [False, True]]]]), "rows are not prefixes of one set"),
        (
            torch.ones(1, 1, 2, 3, dtype=torch.bool),
            r"\(1, 1, 2, 3\) is not supported; must be bool",
        ),
    ],
)
def test_masks_that_the_engine_cannot_follow_are_refused(mask, message):
    layer = TernaryCacheLayer(TINY, CODE, CONDITIONING[0], GoldenBackend())
    passes = layer.update(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8))
    with pytest.raises(ValueError, match=message):
        ternary_attention(torch.nn.Module(), torch.zeros(1, 4, 2, 8), *passes, mask)


def test_scaling_of_the_model_is_followed():
    recorder = Recorder(GoldenBackend())
    layer = TernaryCacheLayer(TINY, CODE, CONDITIONING[0], recorder)
    passes = layer.update(torch.ones(1, 2, 2, 8), torch.ones(1, 2, 2, 8))
    module = torch.nn.Module()
    module.layer_idx = 0
    query = torch.randn(1, 4, 1, 8, generator=torch.Generator().manual_seed(0))
    for scaling in (None, 8**-0.5, 1.0):
        ternary_attention(module, query, *passes, None, scaling=scaling)
    first, second, third = (job.real_queries for job in recorder.jobs)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(third, first * 8**0.5)


# --- backends -------------------------------------------------------------------------------------


class Broken:
    """The golden model with one wrong bit in one output of one job."""

    def __init__(self, at_job: int, field: str) -> None:
        self.at_job, self.field = at_job, field
        self.jobs = 0

    def attend(self, job: AttentionJob) -> Attention:
        result = GoldenBackend().attend(job)
        if self.jobs == self.at_job:
            if self.field == "values":
                result.values[0, 1, 0, 2, 5] ^= 1
            else:
                result.exponent[0, 1, 2] += 1
        self.jobs += 1
        return result


def test_checked_backends_that_agree(language_model, tmp_path):
    checked = CheckedBackend(GoldenBackend(), GoldenBackend(), tmp_path)
    found = logits(language_model, tokens(7), new_cache(checked))
    assert torch.equal(found, logits(language_model, tokens(7), new_cache()))
    assert checked.outputs_compared == 2 * 2 * 2 * 7 * 8  # layers, KV heads, group, tokens, D
    assert checked.mismatches == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "count", "place"),
    [
        ("values", 1, "query head 2 (KV head 1), token 2, dimension 5"),
        ("exponent", 16, "query head 2 (KV head 1), token 2, dimension 0"),
    ],
)
def test_a_single_wrong_bit_is_found_named_and_saved(language_model, tmp_path, field, count, place):
    from safetensors import safe_open

    checked = CheckedBackend(GoldenBackend(), Broken(1, field), tmp_path / "new")
    with pytest.raises(MismatchError) as caught:
        logits(language_model, tokens(7), new_cache(checked))
    message = str(caught.value)
    assert message.startswith(f"layer 1, {place}: ")
    assert f"{count} of 224 outputs differ" in message
    assert checked.mismatches == count
    (saved,) = (tmp_path / "new").iterdir()
    assert message.endswith(f"inputs saved to {saved}")
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["layer"] == "1"
        assert type(TINY).model_validate_json(file.metadata()["config"]) == TINY
        wrong = file.get_tensor(f"found.{field}") != file.get_tensor(f"expected.{field}")
        assert wrong.sum() == 1
        assert file.get_tensor("keys.digits").shape == (1, 2, 7, 5, 8)


def test_a_result_of_another_shape_is_a_mismatch(language_model, tmp_path):
    class Short:
        def attend(self, job: AttentionJob) -> Attention:
            result = GoldenBackend().attend(job)
            return Attention(result.values[..., :4], result.exponent, result.saturated)

    checked = CheckedBackend(GoldenBackend(), Short(), tmp_path)
    with pytest.raises(MismatchError, match=r"^layer 0: outputs have shape \(1, 2, 2, 7, 4\), exp"):
        logits(language_model, tokens(7), new_cache(checked))


def test_split_backend_gives_decode_steps_to_the_second(language_model):
    prefill, decode = Recorder(GoldenBackend()), Recorder(GoldenBackend())
    cache = new_cache(SplitBackend(prefill, decode))
    for ids in (tokens(5), tokens(1), tokens(2), tokens(1)):
        logits(language_model, ids, cache)
    assert [job.real_queries.shape[-2] for job in prefill.jobs] == [5, 5, 2, 2]
    assert [job.real_queries.shape[-2] for job in decode.jobs] == [1] * 4
    logits(language_model, tokens(1).expand(2, 1), new_cache(SplitBackend(prefill, decode)))
    assert prefill.jobs[-1].real_queries.shape[0] == 2


def test_measured_backend_measures_the_other_ones_distance(language_model):
    same = MeasuredBackend(GoldenBackend(), GoldenBackend())
    logits(language_model, tokens(9), new_cache(same))
    assert same.largest_error == 0
    assert same.relative_error == 0
    assert same.outputs_compared == 2 * 2 * 2 * 9 * 8

    measured = MeasuredBackend(FloatBackend(), GoldenBackend())
    found = logits(language_model, tokens(9), new_cache(measured))
    assert torch.equal(found, logits(language_model, tokens(9), new_cache(FloatBackend())))
    assert 0 < measured.relative_error < 0.01
    assert 0 < measured.largest_error < 0.1
