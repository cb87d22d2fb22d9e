"""Which models run on a ternary cache: many families, each refused in one line or decoding."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_model import prompt, tiny_model
from tqdm.auto import tqdm
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.models.mistral.modeling_mistral import MistralAttention

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.llm.calibration import calibrate
from golden.llm.decoding import decode, decode_unquantized, make_cache
from golden.llm.model_support import (
    _hidden_by,
    head_shape,
    layer_attention,
    quiet_transformers,
)
from golden.llm.models import LanguageModel
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.errors import UserError

TOKENS = {"vocab_size": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
#: The fields of most decoders; heads of 8 elements.
DECODER = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
#: Those of the older ones, without grouped queries.
OLD = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
GPT = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4}
LATENT = {
    **DECODER,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
FULL = ["full_attention", "full_attention"]
NO_INTERFACE = "its attention code does not go through transformers' attention interface"


def of(model_type: str, base: dict[str, object], **more: object) -> PreTrainedConfig:
    """A configuration of a family."""
    return CONFIG_MAPPING[model_type](**{**base, **more})


REFUSED = {
    "gemma2, all layers full": (
        lambda: of("gemma2", DECODER, head_dim=8, layer_types=FULL),
        "layer 0 has soft-capped scores (cap 50.0)",
    ),
    "llama4": (
        lambda: of(
            "llama4_text", DECODER, head_dim=8, num_local_experts=4, attention_chunk_size=16
        ),
        "it has layers of kind chunked_attention",
    ),
    "deepseek_v2": (
        lambda: of("deepseek_v2", LATENT),
        "layer 0 has keys of 12 elements and values of 8, as multi-head latent attention has",
    ),
    "deepseek_v3": (
        lambda: of("deepseek_v3", LATENT),
        "layer 0 has keys of 12 elements and values of 8, as multi-head latent attention has",
    ),
    "glm4_moe_lite": (
        lambda: of("glm4_moe_lite", LATENT, v_head_dim=12),
        "layer 0 does not attend to keys and values as they are cached",
    ),
    "gemma4": (
        lambda: of("gemma4_text", DECODER),
        "its configuration has no one shape of heads for all layers: "
        "AmbiguousGlobalPerLayerAttributeError: 'head_dim' is a per-layer attribute and may vary "
        "across layers. Access it via the individual layer configs instead (e.g. "
        "config.per_layer_config[i].head_dim). To read the global config value from conf",
    ),
    "gemma3n": (
        lambda: of(
            "gemma3n_text",
            DECODER,
            num_kv_shared_layers=0,
            activation_sparsity_pattern=[0.95, 0.0],
        ),
        "its code cannot be followed without weights to layer 1: RuntimeError: Tensor.item() "
        "cannot be called on meta tensors",
    ),
    "mistral, no window": (
        lambda: of("mistral", DECODER, sliding_window=0),
        "layer 0 has attention to 0 tokens",
    ),
    "diffllama": (
        lambda: of("diffllama", DECODER),
        "layer 0 computes 2 attentions, not one",
    ),
    "doge": (
        lambda: of("doge", DECODER),
        "layer 0 has a mask of its own",
    ),
    "bloom": (lambda: of("bloom", TOKENS, hidden_size=32, n_layer=2, n_head=4), NO_INTERFACE),
    "mpt": (lambda: of("mpt", TOKENS, d_model=32, n_layers=2, n_heads=4), NO_INTERFACE),
    "falcon": (lambda: of("falcon", OLD), NO_INTERFACE),
    "falcon, alibi": (lambda: of("falcon", OLD, alibi=True), NO_INTERFACE),
    "gptj": (lambda: of("gptj", GPT, rotary_dim=4), NO_INTERFACE),
    "gpt_neo": (
        lambda: of(
            "gpt_neo",
            TOKENS,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
        ),
        NO_INTERFACE,
    ),
    "codegen": (lambda: of("codegen", GPT, rotary_dim=4), NO_INTERFACE),
    "bart": (
        lambda: of("bart", {**TOKENS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}),
        "it is an encoder-decoder",
    ),
    "bert": (lambda: of("bert", OLD), "layer 0 has attention that is not causal"),
    "mamba": (
        lambda: of("mamba", TOKENS, hidden_size=32, num_hidden_layers=2),
        "it has layers of kind linear_attention",
    ),
    "rwkv": (
        lambda: of("rwkv", TOKENS, hidden_size=32, num_hidden_layers=2),
        "it keeps a recurrent state instead of keys and values",
    ),
    "jamba": (
        lambda: of("jamba", DECODER, attn_layer_offset=0, attn_layer_period=2),
        "it has layers of kind full_attention, linear_attention",
    ),
    "recurrent_gemma": (
        lambda: of("recurrent_gemma", DECODER),
        "it has layers of kind linear_attention",
    ),
    "mllama": (
        lambda: of(
            "mllama",
            {},
            text_config={
                **DECODER,
                "cross_attention_layers": [1],
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        ),
        "layer 1 has no attention of its own",
    ),
    "opt, another head dimension": (
        lambda: of("opt", {**OLD, "ffn_dim": 48, "word_embed_proj_dim": 32, "head_dim": 16}),
        "layer 0 has 4 KV heads of 8 elements, its configuration says 4 of 16",
    ),
    "jetmoe": (
        lambda: of("jetmoe", DECODER, kv_channels=8, num_local_experts=4),
        "its code cannot be followed without weights: NotImplementedError: Cannot copy out of meta "
        "tensor; no data!",
    ),
    "llama, no such size": (
        lambda: of("llama", DECODER, intermediate_size=-1),
        "no model can be built from its configuration: RuntimeError: Trying to create tensor with "
        "negative dimension -1: [-1, 32]",
    ),
    "llama, very deep": (
        lambda: of("llama", DECODER, num_hidden_layers=100_000),
        "it has 100000 layers, more than 1024",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_true_line(name):
    make, reason = REFUSED[name]
    config = make()
    with pytest.raises(UserError) as caught:
        layer_attention("it", config)
    assert str(caught.value) == (
        f"model 'it' ({config.model_type}) does not run on a ternary cache: {reason}; allowed are "
        "decoders whose layers all attend to the whole context or to a sliding window by one "
        "softmax"
    )


FOUR = {**DECODER, "num_hidden_layers": 4}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
#: All ways in which configurations name windows, and the window of each layer.
WINDOWS = {
    "mistral": (lambda: of("mistral", DECODER, sliding_window=16), (16, 16)),
    "ministral3": (lambda: of("ministral3", DECODER, head_dim=8, sliding_window=16), (16, 16)),
    "mixtral": (
        lambda: of("mixtral", DECODER, sliding_window=16, num_local_experts=4),
        (16, 16),
    ),
    "phi3": (lambda: of("phi3", DECODER, sliding_window=16), (16, 16)),
    "phimoe": (
        lambda: of("phimoe", DECODER, sliding_window=16, num_local_experts=4, **EXPERTS),
        (16, 16),
    ),
    "starcoder2": (lambda: of("starcoder2", DECODER, sliding_window=16), (16, 16)),
    "qwen2, upper layers": (
        lambda: of("qwen2", FOUR, use_sliding_window=True, sliding_window=16, max_window_layers=1),
        (None, 16, 16, 16),
    ),
    "qwen2, not in use": (
        lambda: of("qwen2", DECODER, use_sliding_window=False, sliding_window=16),
        (None, None),
    ),
    "qwen3, upper layers": (
        lambda: of(
            "qwen3",
            FOUR,
            head_dim=8,
            use_sliding_window=True,
            sliding_window=16,
            max_window_layers=3,
        ),
        (None, None, None, 16),
    ),
    "qwen3_moe": (
        lambda: of("qwen3_moe", DECODER, use_sliding_window=True, sliding_window=16, **EXPERTS),
        (16, 16),
    ),
    "gemma3, by layer": (
        lambda: of("gemma3_text", FOUR, head_dim=8, sliding_window=16, layer_types=MIXED),
        (16, None, 16, None),
    ),
    "gemma3, by pattern": (
        lambda: of("gemma3_text", FOUR, head_dim=8, sliding_window=16, sliding_window_pattern=3),
        (16, 16, None, 16),
    ),
    "gemma3, with pictures": (
        lambda: of(
            "gemma3",
            {},
            text_config={**FOUR, "head_dim": 8, "sliding_window": 16, "layer_types": MIXED},
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        ),
        (16, None, 16, None),
    ),
    "cohere2": (
        lambda: of("cohere2", FOUR, sliding_window=16, sliding_window_pattern=2),
        (16, None, 16, None),
    ),
    "exaone4": (
        lambda: of("exaone4", FOUR, sliding_window=16, sliding_window_pattern=2),
        (16, None, 16, None),
    ),
    "olmo3": (lambda: of("olmo3", FOUR, sliding_window=16), (16, 16, 16, None)),
    "ministral": (
        lambda: of("ministral", FOUR, head_dim=8, sliding_window=16, layer_types=MIXED),
        (16, None, 16, None),
    ),
    "smollm3": (
        lambda: of(
            "smollm3",
            FOUR,
            use_sliding_window=True,
            sliding_window=16,
            no_rope_layers=[1, 0, 1, 0],
            layer_types=None,
        ),
        (None, 16, None, 16),
    ),
    "gpt_oss": (
        lambda: of(
            "gpt_oss", DECODER, head_dim=8, sliding_window=16, num_local_experts=4, **EXPERTS
        ),
        (16, None),
    ),
    # a window of one token, and one longer than any engine's context
    "mistral, one token": (lambda: of("mistral", DECODER, sliding_window=1), (1, 1)),
    "mistral, long": (lambda: of("mistral", DECODER, sliding_window=1 << 22), (1 << 22, 1 << 22)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_what_the_model_does(name):
    make, windows = WINDOWS[name]
    config = make()
    layers = layer_attention("it", config)
    assert tuple(layer.window for layer in layers) == windows
    assert {layer.learned_sinks for layer in layers} == {name == "gpt_oss"}


@pytest.mark.parametrize("window", [1, 5, 16])
def test_a_window_is_as_long_as_its_number_says(window):
    """One layer's own attention: the newest `window` tokens, no other, change the last output."""
    torch.manual_seed(1)
    config = of("mistral", DECODER, sliding_window=window, num_hidden_layers=1)
    assert layer_attention("it", config) == ((window, False),)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(2, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(ids).logits[0, -1]
        seen = []
        for place in range(20):
            changed = ids.clone()
            changed[0, place] = 1
            seen.append(not torch.equal(model(changed).logits[0, -1], before))
    assert seen == [place >= 20 - window for place in range(20)]


def test_learned_sinks_are_told_by_layer():
    config = of("flint", FOUR, head_dim=8, sliding_window=16)
    assert layer_attention("it", config) == (
        (None, True),
        (None, True),
        (16, True),
        (None, True),
    )


def other_mask(function):
    """The reason for which a mask is refused; transformers' own masks make it."""
    return _hidden_by(function, 16)


def test_masks_that_are_no_window():
    assert other_mask(causal_mask_function) is None
    assert other_mask(sliding_window_causal_mask_function(16)) == 16
    chunks = chunked_causal_mask_function(16, torch.zeros(1, dtype=torch.int64))
    assert other_mask(chunks) == "attention to chunks of 16 tokens"
    for function in (
        sliding_window_causal_mask_function(17),
        sliding_window_causal_mask_function(15),
        sliding_window_bidirectional_mask_function(16),
        bidirectional_mask_function,
        chunked_causal_mask_function(16, torch.ones(1, dtype=torch.int64)),
        lambda batch, head, query, token: (token <= query) & (token != 32),
    ):
        assert other_mask(function) == "a mask of its own"
    assert _hidden_by(sliding_window_causal_mask_function(16), None) == "a mask of its own"
    assert _hidden_by(causal_mask_function, "16") == "attention to '16' tokens"


def test_a_window_in_words_and_in_the_mask_must_agree(monkeypatch):
    """A model whose argument says another window than its mask hides tokens in one kernel only."""
    config = of("mistral", DECODER, sliding_window=16)
    forward = MistralAttention.forward

    def says_otherwise(self, *args, **kwargs):
        self.config.sliding_window = 17
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MistralAttention, "forward", says_otherwise)
    with pytest.raises(UserError, match="17 tokens by one of its arguments, and by its mask one"):
        layer_attention("it", config)


ACCEPTED = {
    "apertus": lambda: of("apertus", DECODER),
    "biogpt": lambda: of("biogpt", OLD),
    "cohere": lambda: of("cohere", DECODER),
    "gemma": lambda: of("gemma", DECODER, head_dim=8),
    "gpt_bigcode": lambda: of("gpt_bigcode", GPT, initializer_range=0.3),
    "granite": lambda: of("granite", DECODER),
    "mixtral": lambda: of("mixtral", DECODER, num_local_experts=4),
    "olmo2": lambda: of("olmo2", DECODER),
    "phi": lambda: of("phi", DECODER, num_key_value_heads=4),
    "phi3": lambda: of("phi3", DECODER, sliding_window=None),
    "qwen2, no window": lambda: of("qwen2", DECODER, use_sliding_window=False, sliding_window=16),
    "qwen3_moe": lambda: of("qwen3_moe", DECODER, head_dim=8, num_experts=4, **EXPERTS),
    "smollm3": lambda: of("smollm3", DECODER),
    "stablelm": lambda: of("stablelm", DECODER),
    "starcoder2": lambda: of("starcoder2", DECODER, sliding_window=None),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_decodes(name):
    """Five digits predict as the model's own cache does, and one digit does not."""
    config = ACCEPTED[name]()
    layer_attention("it", config)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    language_model = LanguageModel("it", model, tiny_model().tokenizer)
    calibration = calibrate(language_model, prompt(60), tokens=50)
    fitted = language_model.engine_config(64)
    assert head_shape(config) == (fitted.table_heads // 2, fitted.query_group, fitted.head_dim)

    ids = torch.randint(2, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact = model(ids).logits
    errors = []
    for digits in (5, 1):
        code = CacheCode("balanced", digits, digits)
        cache = make_cache(fitted, code, calibration, GoldenBackend())
        with language_model.attending_with(ATTENTION), torch.inference_mode():
            logits = model(ids, past_key_values=cache).logits
        errors.append(((logits - exact).square().mean().sqrt() / exact.std()).item())
    assert errors[0] < 0.1
    assert errors[1] > 3 * errors[0]

    cache = make_cache(fitted, CacheCode("balanced", 5, 5), calibration, GoldenBackend())
    assert len(decode(language_model, prompt(9), 4, cache).tokens) == 4
    assert cache.get_seq_length() == 12


def test_trying_a_model_leaves_no_trace():
    """No random number is drawn, and the configuration stays as it was."""
    config = of("llama", DECODER)
    before = config.to_dict()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    layer_attention("it", config)
    assert torch.equal(torch.rand(4), expected)
    assert config.to_dict() == before
    assert config._attn_implementation_internal is None


def test_a_refused_model_still_decodes_on_its_own_cache():
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(of("bloom", TOKENS, hidden_size=32, n_layer=2)).eval()
    language_model = LanguageModel("bloom", model, tiny_model().tokenizer)
    assert language_model.max_positions == 1 << 20
    assert len(decode_unquantized(language_model, prompt(9), 4).tokens) == 4


def test_progress_bars_and_warnings_stay_off_the_terminal(capfd):
    with quiet_transformers():
        for _ in tqdm(range(3)):  # as transformers reads the tensors of a GGUF file
            warnings.warn("about a weight", stacklevel=1)
    assert capfd.readouterr() == ("", "")
    for _ in tqdm(range(3)):
        pass
    assert "3/3" in capfd.readouterr().err
