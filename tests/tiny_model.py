"""A small, randomly initialised Llama with a tokenizer, the size of the `tiny` preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from golden.llm import calibration
from golden.llm.models import LanguageModel

#: What a Llama's and a Mistral's configuration have in common.
LLAMA_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
WORDS = [f"w{number}" for number in range(126)]


def tiny_model(
    seed: int = 0, *, head_dim: int = 8, query_group: int = 2, sliding: int | None = None
) -> LanguageModel:
    """Two layers, two KV heads; random weights large enough that every token matters.

    With `sliding` it is a hybrid: a Qwen 2 whose first layer has a sliding window of so many
    tokens.
    """
    sizes: dict[str, Any] = dict(
        vocab_size=128,
        hidden_size=16 * query_group,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2 * query_group,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    if sliding is None:
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        kinds = ["sliding_attention", "full_attention"]
        window = {"use_sliding_window": True, "sliding_window": sliding, "layer_types": kinds}
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, **window))
    model.eval()
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    return LanguageModel("tiny", model, fast)


def with_window(language_model: LanguageModel, window: int) -> LanguageModel:
    """The tiny model as a Mistral, whose layers attend to a sliding window."""
    config = language_model.model.config
    fields = {name: getattr(config, name) for name in LLAMA_FIELDS}
    model = MistralForCausalLM(MistralConfig(**fields, sliding_window=window)).eval()
    model.load_state_dict(language_model.model.state_dict())
    return LanguageModel(language_model.name, model, language_model.tokenizer)


def with_beginning(language_model: LanguageModel) -> LanguageModel:
    """The tiny model with a tokenizer that puts <bos>, number 127, before a text."""
    fast = language_model.tokenizer
    tokenizer = Tokenizer.from_str(
        fast.backend_tokenizer.to_str().replace(f'"{WORDS[-1]}":', '"<bos>":')
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 127)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    )
    return LanguageModel(language_model.name, language_model.model, fast)


def prompt(length: int, seed: int = 0) -> str:
    """Some words of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(WORDS), (length,), generator=generator)
    return " ".join(WORDS[index] for index in chosen.tolist())


def evaluation_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, words: int) -> Path:
    """A working folder with the model in `model` and a text in `text.txt`; caches are temporary."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 60)
    save_tiny_model(folder / "model")
    (folder / "text.txt").write_text(prompt(words, seed=9))
    return folder


def save_tiny_model(folder: Path, **options: int) -> Path:
    """The model as a folder that `load_model` reads."""
    language_model = tiny_model(**options)
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    return folder
