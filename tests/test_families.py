"""Model families on the ternary cache: generation, beams, padded batches, cropping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decode_command import arguments, report_of
from tiny_model import prompt, tiny_model
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.cache.ternary_cache import TernaryCache
from golden.llm.calibration import Calibration, calibrate
from golden.llm.decoding import decode_unquantized, make_cache
from golden.llm.models import LanguageModel
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import ConfigError

COMMON = {
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
LLAMA_LIKE = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

GPT_OSS_LIKE = {  # learned sinks in all layers, a sliding window in every other
    **LLAMA_LIKE,
    "head_dim": 8,
    "sliding_window": 8,
    "initializer_range": 0.2,  # its experts amplify differences
    "num_local_experts": 2,
    "num_experts_per_tok": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**LLAMA_LIKE),
    "mistral": lambda: MistralConfig(**LLAMA_LIKE, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**LLAMA_LIKE, head_dim=12),  # not hidden_size / heads
    "opt": lambda: OPTConfig(
        **{key: value for key, value in COMMON.items() if key != "initializer_range"},
        init_std=0.3,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "mistral, windows": lambda: MistralConfig(**LLAMA_LIKE, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(  # norms on queries and keys; one KV head
        **{**LLAMA_LIKE, "num_hidden_layers": 3, "num_key_value_heads": 1},
        head_dim=16,
        query_pre_attn_scalar=16,
        tie_word_embeddings=False,  # else it repeats its last token
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_oss": lambda: GptOssConfig(**GPT_OSS_LIKE),
    "gpt2": lambda: GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4),
    "gpt_neox": lambda: GPTNeoXConfig(
        **COMMON,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
}
CODES = [CacheCode("balanced", 3, 2), CacheCode("residual", 3, 3)]


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights; some of its learned sinks are above all scores of a query."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for sinks in learned_sinks(model):
        sinks.normal_(0, 3)
    return model


def learned_sinks(model: PreTrainedModel) -> list[torch.Tensor]:
    return [p.data for name, p in model.named_parameters() if name.endswith(".sinks")]


def family_model(name: str) -> LanguageModel:
    return LanguageModel(name, random_model(FAMILIES[name]()), tiny_model().tokenizer)


class Bench:
    """A model of a family, calibrated, that runs on fresh ternary caches."""

    def __init__(self, name: str, code: CacheCode) -> None:
        self.language_model = family_model(name)
        self.code = code
        self.calibration: Calibration = calibrate(self.language_model, prompt(60), tokens=50)
        self.config = self.language_model.engine_config(64)
        self.language_model.check_fits(self.config)
        self.language_model.model.set_attn_implementation(ATTENTION)

    def cache(self) -> TernaryCache:
        windows = self.language_model.windows
        return make_cache(self.config, self.code, self.calibration, GoldenBackend(), windows)

    def logits(self, ids: torch.Tensor, cache: TernaryCache) -> torch.Tensor:
        with torch.inference_mode():
            return self.language_model.model(ids, past_key_values=cache).logits

    def generate(self, ids: torch.Tensor, **options: object):
        with torch.inference_mode():
            return self.language_model.model.generate(
                ids,
                attention_mask=(ids != 0).long(),
                past_key_values=self.cache(),
                max_new_tokens=8,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def ids(length: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 128, (batch, length), generator=generator)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_greedy_generation_is_the_argmax_of_one_teacher_forced_pass(family, code):
    bench = Bench(family, code)
    tokens = bench.generate(ids(9)).sequences
    assert tokens.shape == (1, 17)
    predicted = bench.logits(tokens, bench.cache())[0].argmax(-1)
    assert predicted[8:-1].tolist() == tokens[0, 9:].tolist()
    assert len(set(tokens[0, 9:].tolist())) > 1  # a model that always says the same proves little


def test_the_cache_is_what_the_attention_reads(family):
    """One digit instead of five must be seen: the model's own cache is not in use."""
    fine, coarse = (Bench(family, CacheCode("balanced", n, n)) for n in (5, 1))
    results = [bench.logits(ids(20), bench.cache()) for bench in (fine, coarse)]
    model = fine.language_model.model
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        exact = model(ids(20)).logits
    errors = [(result - exact).square().mean().sqrt().item() for result in results]
    assert errors[0] < 0.1 * exact.std().item()
    assert errors[1] > 3 * errors[0]


def test_a_sequence_does_not_depend_on_its_batch(family):
    """Padding on the left and other sequences beside it change no token."""
    bench = Bench(family, CODES[0])
    prompts = [ids(11, 1)[0], ids(6, 2)[0], ids(9, 3)[0]]
    padded = torch.zeros(3, 11, dtype=torch.int64)
    for row, tokens in zip(padded, prompts, strict=True):
        row[-len(tokens) :] = tokens
    together = bench.generate(padded).sequences[:, 11:]
    for row, tokens in zip(together, prompts, strict=True):
        alone = bench.generate(tokens[None]).sequences[0, len(tokens) :]
        assert row.tolist() == alone.tolist()


def test_beam_search_reorders_the_cache(family):
    """The score of a beam is that of its tokens on a cache that was never reordered."""
    bench = Bench(family, CODES[0])
    found = bench.generate(ids(9, 1), num_beams=4, num_return_sequences=4, length_penalty=0.0)
    parents = found.beam_indices
    assert (parents.diff(dim=-1)[:, :7] != 0).any()  # beams did change places
    for tokens, score in zip(found.sequences, found.sequences_scores, strict=True):
        log_probabilities = bench.logits(tokens[None], bench.cache())[0].log_softmax(-1)
        expected = log_probabilities[8:-1].gather(-1, tokens[9:, None]).sum()
        assert score.item() == pytest.approx(expected.item(), abs=2e-3)


def test_crop_and_continue(family):
    bench = Bench(family, CODES[0])
    first, wrong, right = ids(7, 1), ids(4, 2), ids(5, 3)
    cropped = bench.cache()
    for piece in (first, wrong):
        bench.logits(piece, cropped)
    cropped.crop(-4)
    assert cropped.get_seq_length() == 7
    fresh = bench.cache()
    bench.logits(first, fresh)
    assert torch.equal(bench.logits(right, cropped), bench.logits(right, fresh))


def test_batch_selection_and_repetition(family):
    bench = Bench(family, CODES[0])
    tokens, more = ids(7, 1, batch=3), ids(3, 2, batch=4)
    cache = bench.cache()
    bench.logits(tokens, cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    fresh = bench.cache()
    bench.logits(tokens[[2, 2, 0, 0]], fresh)
    found, expected = bench.logits(more, cache), bench.logits(more, fresh)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", ["mistral, windows", "gemma3", "gpt_oss"])
def test_prefill_in_pieces_is_that_of_single_tokens(name):
    bench = Bench(name, CacheCode.parse("balanced:3/2,sinks=2,window=3,feedback"))
    tokens = ids(30)
    whole = bench.logits(tokens, bench.cache())
    for pieces in ((1,) * 30, (5, 1, 13, 11)):
        cache = bench.cache()
        found = torch.cat([bench.logits(piece, cache) for piece in tokens.split(pieces, 1)], 1)
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["mistral, windows", "gemma3"])
def test_windows_hide_what_they_hide_from_the_model(name):
    """With five digits the cache predicts as the model does; without windows it does not."""
    bench = Bench(name, CacheCode("balanced", 5, 5))
    model, tokens = bench.language_model.model, ids(40)
    found = bench.logits(tokens, bench.cache())
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        exact = model(tokens).logits
        model.config.sliding_window = 1000
        unlimited = model(tokens).logits
    spread = exact.std().item()
    assert (found - exact).square().mean().sqrt() < 0.1 * spread
    assert (unlimited - exact).square().mean().sqrt() > 0.3 * spread


def test_learned_sinks_are_the_models_own():
    """With five digits the cache predicts as the model does; with other sinks it does not."""
    bench = Bench("gpt_oss", CacheCode("balanced", 5, 5))
    model, tokens = bench.language_model.model, ids(40)
    assert len(learned_sinks(model)) == 2
    found = bench.logits(tokens, bench.cache())
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        exact = model(tokens).logits
        for sinks in learned_sinks(model):
            sinks.fill_(-1000)
        without = model(tokens).logits
    spread = exact.std().item()
    assert (found - exact).square().mean().sqrt() < 0.1 * spread
    assert (without - exact).square().mean().sqrt() > 0.3 * spread


def test_unquantized_decoding_is_the_models_own():
    language_model = family_model("gpt_oss")
    decoded = decode_unquantized(language_model, prompt(20), 12)
    tokens = language_model.tokenizer(prompt(20), return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = language_model.model.generate(tokens, max_new_tokens=12, do_sample=False)
    assert list(decoded.tokens) == expected[0, tokens.shape[1] :].tolist()


#: Kinds of attention beyond one softmax over the whole context, in the size of the `tiny` preset.
ON_RTL = {
    "mistral, windows": lambda: MistralConfig(**LLAMA_LIKE, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(
        **{
            **LLAMA_LIKE,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        head_dim=8,
        query_pre_attn_scalar=8,
        tie_word_embeddings=False,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt_oss": lambda: GptOssConfig(**GPT_OSS_LIKE),
}


@pytest.mark.parametrize("backend", ["rtl", "engine"])
@pytest.mark.parametrize("name", ON_RTL)
def test_on_the_rtl(tiny_folder, name, backend):
    """Every output of every step, and every byte of the memory at the end."""
    model = random_model(ON_RTL[name]())
    model.save_pretrained("family")
    tiny_model().tokenizer.save_pretrained("family")
    code = "balanced:2/1,sinks=2,window=3,feedback"
    found = report_of(
        *arguments(Path("family"), "--max-new-tokens", "14", "--code", code), backend=backend
    )
    heads = model.config.num_hidden_layers * model.config.num_attention_heads
    assert found["outputs_compared"] == 13 * heads * 8
    assert found["mismatches"] == 0
    assert found["tokens_identical"] is True
    assert len(set(found["tokens"])) > 1
    if backend == "rtl":
        assert found["memory_bytes_compared"] > 0
        assert found["memory_differences"] == 0


def test_configuration_is_fitted_to_the_model():
    config = family_model("qwen3").engine_config(300)
    assert (config.head_dim, config.lanes, config.query_group) == (12, 12, 2)
    assert config.max_context == 8192
    assert family_model("gpt2").engine_config(20000).max_context == 32768
    assert family_model("gpt2").engine_config(64).query_group == 1


def test_a_model_that_no_engine_fits():
    language_model = family_model("llama")
    language_model.model.config.num_key_value_heads = 1
    language_model.model.config.num_attention_heads = 9
    with pytest.raises(ConfigError, match=r"^model 'llama' fits no engine: query_group: 9 is"):
        language_model.engine_config(64)
