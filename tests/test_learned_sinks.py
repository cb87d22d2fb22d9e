"""Learned sinks: their integers, the softmax that starts from them, and every reader of them."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal, localcontext
from types import SimpleNamespace

import pytest
import torch
from bench_matrix import CONFIGS
from test_packed_attention import filled
from transformers import GptOssConfig
from transformers.models.auto import AutoModelForCausalLM

from golden.attend.attention import ternary_attention
from golden.attend.backends import FloatBackend, GoldenBackend
from golden.attend.plain_attention import PLAIN_ATTENTION
from golden.attend.single_precision import SinglePrecisionBackend
from golden.cache.attention_job import AttentionJob
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.conditioning import Conditioning
from golden.learned_sinks import LearnedSinks, quantize_learned_sinks, softmax
from golden.llm.calibration import _importance
from golden.llm.capture import CaptureBackend
from golden.online_softmax import online_softmax
from golden.study.baselines.codecs import FloatCodec
from golden.study.baselines.layer import BaselineLayer, LayerRules, TierRule, baseline_attention
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

TINY, SMOLLM2 = load_config("tiny"), load_config("smollm2")


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- integers -------------------------------------------------------------------------------------


def by_hand(config, logit: float) -> tuple[int, int]:
    """docs/contract.md in 60 decimal digits."""
    with localcontext(prec=60):
        limit = Decimal(2) ** (config.score_bits - 1 - config.score_fraction_bits)
        octaves = max(-limit, min(limit, Decimal(logit) / Decimal(2).ln()))
        maximum = octaves.to_integral_value(ROUND_CEILING)
        weight = Decimal(2) ** (config.weight_bits + octaves - maximum) + Decimal("0.5")
        return int(maximum), math.floor(weight)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_integers_of_a_logit(config) -> None:
    logits = [*(gaussian(400, seed=1) * 8).tolist(), 0.0, 1e-9, -1e-9, 700.0, -700.0]
    found = quantize_learned_sinks(config, torch.tensor(logits, dtype=torch.float64))
    expected = [by_hand(config, logit) for logit in logits]
    assert list(zip(found.maximum.tolist(), found.weight.tolist(), strict=True)) == expected
    one = 1 << config.weight_bits
    assert found.weight.min() >= one // 2 and found.weight.max() <= one
    assert found.present(config).all()


def test_ends_of_the_range() -> None:
    ends = torch.tensor([math.inf, -math.inf])
    found = quantize_learned_sinks(TINY, ends)
    limit, one = TINY.ceiling_max, 1 << TINY.weight_bits
    assert found.maximum.tolist() == [limit, -limit]
    assert found.weight.tolist() == [one, one]
    with pytest.raises(ValueError, match=r"^learned sinks hold a logit that is not a number$"):
        quantize_learned_sinks(TINY, torch.tensor([0.0, math.nan]))


def test_only_weights_from_one_half_on_are_learned_sinks() -> None:
    half = 1 << (TINY.weight_bits - 1)
    weight = torch.tensor([0, 1, half - 1, half, 2 * half])
    sinks = LearnedSinks(torch.zeros(5, dtype=torch.int64), weight)
    assert sinks.present(TINY).tolist() == [False, False, False, True, True]


# --- the softmax ----------------------------------------------------------------------------------


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.3, 2.0, 9.7, 30.0])
@pytest.mark.parametrize("tokens", [1, 31, 700])
def test_integer_softmax_is_the_softmax(tokens: int, logit: float) -> None:
    """Weights over the denominator, relative to the same in floating point."""
    config = SMOLLM2
    unit = 1 << config.score_fraction_bits
    scores = (gaussian(1, 1, tokens, seed=tokens) * 2 * unit).round().long()
    visible = torch.ones(1, tokens, dtype=torch.bool)
    found = online_softmax(
        config, scores, visible, quantize_learned_sinks(config, torch.tensor([logit]))
    )
    natural = scores / unit * math.log(2)
    shares = softmax(natural, torch.tensor([logit], dtype=torch.float64))
    rises = found.shifts[0, 0].flip(0).cumsum(0).flip(0)
    later = torch.cat([rises[1:], rises.new_zeros(1)])  # what comes after each block
    weights = found.weights[0][0, 0] * 2.0 ** -later[:, None]
    computed = weights.flatten()[:tokens] / found.sums[0, 0]
    # every weight is rounded to an integer, and the denominator is the sum of these
    rounding = tokens / found.sums[0, 0].item()
    assert (computed - shares[0, 0]).abs().sum() < rounding + 0.005
    left = 1 - computed.sum()  # the part of the learned sink
    assert left.item() == pytest.approx(1 - shares.sum().item(), abs=rounding / 2 + 0.005)


def test_softmax_with_a_learned_sink_is_that_of_one_more_token() -> None:
    scores, logits = gaussian(2, 3, 4, 5, 9, seed=1), gaussian(3, 4, seed=2)
    more = torch.cat([scores, logits[None, :, :, None, None].expand(2, 3, 4, 5, 1)], -1)
    torch.testing.assert_close(softmax(scores, logits), more.softmax(-1)[..., :-1])
    assert torch.equal(softmax(scores, None), scores.softmax(-1))
    hidden = torch.full((1, 1, 2, 3), -math.inf)
    assert not softmax(hidden, torch.zeros(1, 1)).any()


# --- readers of learned sinks ---------------------------------------------------------------------


def job(config, code: str, queries: int, sinks: bool = True) -> AttentionJob:
    layer = filled(config, code, 2, 3)
    values = gaussian(2, 3, config.query_group, queries, config.head_dim, seed=2) * 2.0**-12 / 32
    logits = gaussian(3, config.query_group, seed=3) * 4 + 3 if sinks else None
    causal = torch.ones(queries, layer.tokens, dtype=torch.bool).tril(layer.tokens - queries)
    visible = causal.expand(2, 1, queries, layer.tokens).clone()
    visible[1, ..., 40:] &= queries > 1
    return AttentionJob(0, values, layer, visible, logits)


@pytest.mark.parametrize("group", [1, 3, 6])
@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("code", ["balanced:5/5", "balanced:3/2,sinks=2,window=5"])
def test_backends_agree(code: str, queries: int, group: int) -> None:
    config = SMOLLM2.replace(query_group=group, max_context=128)
    with_sinks = job(config, code, queries if "window" not in code else 1)
    exact, without = (
        FloatBackend().attend(each)
        for each in (with_sinks, job(config, code, with_sinks.scaled_queries.shape[-2], False))
    )
    assert (exact - without).norm() > 0.05 * exact.norm()
    single = SinglePrecisionBackend().attend(with_sinks)
    assert (single - exact).norm() < 2e-6 * exact.norm()
    integers = GoldenBackend().attend(with_sinks).to_float()
    assert (integers - exact).norm() < 0.03 * exact.norm()


def test_a_job_gives_integers_of_its_layer() -> None:
    config = SMOLLM2.replace(max_context=128)
    with_sinks = job(config, "balanced:2/2", 1)
    expected = quantize_learned_sinks(config, with_sinks.sink_logits)
    for name in ("maximum", "weight"):
        assert torch.equal(getattr(with_sinks.learned_sinks, name), getattr(expected, name))
        of_head = getattr(expected.of_kv_head(2), name)
        assert torch.equal(of_head, getattr(expected, name)[2])
    assert expected.array().shape == (2, 3, config.query_group)
    assert job(config, "balanced:2/2", 1, sinks=False).learned_sinks is None


def test_captured_jobs_keep_those_of_their_head() -> None:
    config = SMOLLM2.replace(max_context=128)
    queries = gaussian(1, 3, config.query_group, 1, config.head_dim, seed=2) * 2.0**-17
    logits = gaussian(3, config.query_group, seed=3) * 4
    backend = CaptureBackend([0], [2], [7, 8])
    layer = TernaryCacheLayer(
        config, CacheCode.parse("balanced:3/2"), Conditioning(True, None, -12, -12), backend
    )
    for step in range(8):
        cache, _ = layer.update(*gaussian(2, 1, 3, 1, config.head_dim, seed=step))
        backend.attend(AttentionJob(0, queries, cache, None, logits))
    backend.attend(AttentionJob(0, queries, cache, None))
    kept, without = backend.captured
    expected = quantize_learned_sinks(config, logits)
    assert torch.equal(kept.learned_sinks.maximum, expected.maximum[2])
    assert torch.equal(kept.learned_sinks.weight, expected.weight[2])
    assert not without.learned_sinks.weight.any()
    for captured in (kept, without):
        assert torch.equal(captured.golden(), captured.expected)
    assert not torch.equal(kept.expected, without.expected)


def test_attention_function_groups_the_heads() -> None:
    """Learned sinks come as one per head; a KV head's query heads follow each other."""
    config = SMOLLM2.replace(max_context=128)
    layer = filled(config, "balanced:5/5", 1, 3)
    heads = 3 * config.query_group
    queries = gaussian(1, heads, 1, config.head_dim, seed=5).float()
    sinks = torch.full((heads,), -1000.0)
    module = SimpleNamespace(layer_idx=0)
    before, _ = ternary_attention(module, queries, layer, layer, None, s_aux=None)
    none, _ = ternary_attention(module, queries, layer, layer, None, s_aux=sinks)
    sinks[4] = 1000
    one, _ = ternary_attention(module, queries, layer, layer, None, s_aux=sinks)
    assert torch.equal(none, before)
    changed = (one != before).any(-1)[0, 0]
    assert changed.nonzero().flatten().tolist() == [4]
    assert not one[0, 0, 4].any()


def tiny_gpt_oss():
    torch.manual_seed(1)
    config = GptOssConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=2,
        sliding_window=5,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.data.normal_(0, 3)
    return model


def test_plain_attention_is_the_models_own() -> None:
    """In one pass, in a padded batch, and token by token on a cache of transformers."""
    model = tiny_gpt_oss()
    ids = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0

    def logits() -> list[torch.Tensor]:
        with torch.inference_mode():
            whole = model(ids).logits
            padded = model(ids, attention_mask=mask).logits[mask.bool()]
            cache, steps = None, []
            for token in ids[:1].split(1, -1):
                found = model(token, past_key_values=cache, use_cache=True)
                cache = found.past_key_values
                steps.append(found.logits)
        return [whole, padded, torch.cat(steps, 1)]

    expected = logits()
    model.set_attn_implementation(PLAIN_ATTENTION)
    for found, own in zip(logits(), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)


def test_importance_of_a_learned_sink_is_that_of_one_more_token() -> None:
    """The token has a score that no other key gives, a value of zero, and is not counted."""
    queries, keys, values = (gaussian(2, *shape, seed=7) for shape in ((3, 9, 8), (9, 8), (9, 8)))
    through, logits = gaussian(2, 3, 8, 8, seed=8), gaussian(2, 3, seed=9)
    through = through.mT @ through
    found = _importance(queries, keys, values, through, None, logits)
    expected = torch.zeros_like(found)
    for head in range(2):
        for g in range(3):
            for t in range(9):
                scores = keys[head, : t + 1] @ queries[head, g, t] / math.sqrt(8)
                exponents = torch.cat([scores, logits[head, g, None]]).exp()
                weights = (exponents / exponents.sum())[:-1]
                moved = values[head, : t + 1] - weights @ values[head, : t + 1]
                norms = torch.einsum("ti,ij,tj->t", moved, through[head, g], moved)
                expected[head, g, t] = (weights.square() * norms)[4:].sum()
    torch.testing.assert_close(found, expected)


def test_baselines_read_them() -> None:
    config = SMOLLM2
    heads = 3 * config.query_group
    rule = TierRule(FloatCodec(torch.float32), FloatCodec(torch.float32), lambda tokens: tokens)
    keys, values = gaussian(2, 1, 3, 20, config.head_dim, seed=1).float()
    stored, _ = BaselineLayer(LayerRules(rule, rule)).update(keys, values)
    queries = gaussian(1, heads, 20, config.head_dim, seed=2).float()
    sinks = gaussian(heads, seed=3).float() * 4
    found, _ = baseline_attention(None, queries, stored, stored, None, s_aux=sinks)
    grouped = queries.unflatten(1, (3, -1))
    scores = grouped @ keys[:, :, None].mT / 8
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    weights = softmax(scores.masked_fill(~causal, -math.inf), sinks.unflatten(0, (3, -1)))
    expected = (weights @ values[:, :, None]).flatten(1, 2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
