"""Cache formats from outside the project, through `kvtq_hw.evaluate`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_model import evaluation_folder, prompt, tiny_model
from torch import Tensor
from transformers import DynamicCache

import kvtq_hw
from golden.llm.models import LanguageModel, load_model
from golden.study.baselines.codecs import ChannelCodec, FloatCodec, TokenCodec
from golden.study.own_format import CodecFormat
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.errors import UserError

TEXT = prompt(200, seed=9)


class Nibbles:
    """Integers of -7 to 7 under one fp16 scale per vector; two in a byte by hand."""

    tokens_per_entry = 1

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        scale = (x.abs().amax(-1) / 7).clamp(min=torch.finfo(torch.float16).tiny).half()
        step = scale.float()[..., None]
        codes = ((x + 7 * step) / step).round().clamp(0, 14).long()
        return (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8), scale

    def decode(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        packed, scale = stored
        codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).float()
        step = scale.float()[..., None]
        return codes * step - 7 * step


@pytest.fixture
def model() -> LanguageModel:
    return tiny_model()


def evaluate(model: LanguageModel, *formats, **options):
    options = {"text": TEXT, "context": 40, "segments": 2} | options
    return kvtq_hw.evaluate(model.model, model.tokenizer, formats=formats, **options)


def test_a_codec_of_one_s_own_is_measured_as_the_built_in_one(model) -> None:
    """The same integers as `int4`, written again: the same row."""
    rows = evaluate(model, CodecFormat("mine", Nibbles(), Nibbles()), "int4")
    assert list(rows) == ["unquantized", "mine", "int4"]
    assert rows["mine"] == rows["int4"]
    assert rows["mine"].bits_per_element == 4 + 16 / 8
    assert rows["mine"].tokens == 2 * 39 and rows["mine"].kld > 0
    assert rows["unquantized"].perplexity_ratio == 1 and rows["unquantized"].kld == 0


def test_rows_are_those_of_the_command(tmp_path, monkeypatch) -> None:
    folder = evaluation_folder(tmp_path, monkeypatch, 200)
    codes = ["int4", "balanced:2/2"]
    arguments = ["eval", "--model", "./model", "--text", "text.txt", "--json", "r.json"]
    arguments += ["--context", "40", "--segments", "2"]
    for code in codes:
        arguments += ["--code", code]
    assert run(arguments) == 0
    loaded = load_model(str(folder / "model"))
    text = Path("text.txt").read_text()
    rows = evaluate(loaded, *codes, text=text)
    for row in json.loads(Path("r.json").read_text())["rows"]:
        mine = rows[row["code"]]
        assert (mine.kld, mine.bits_per_element) == (row["kld"], row["bits_per_element"])


def test_sinks_and_window_are_in_fp16(model) -> None:
    plain, tiers = (
        CodecFormat(name, Nibbles(), Nibbles(), **more)
        for name, more in (("plain", {}), ("tiers", {"sinks": 2, "window": 8}))
    )
    rows = evaluate(model, plain, tiers)
    assert rows["tiers"].bits_per_element == (10 * 16 + 30 * 6) / 40
    assert rows["tiers"].kld < rows["plain"].kld


def test_keys_and_values_have_their_own_codecs(model) -> None:
    half = FloatCodec(torch.float16)
    rows = evaluate(
        model, CodecFormat("keys", Nibbles(), half), CodecFormat("values", half, Nibbles())
    )
    assert rows["keys"].bits_per_element == rows["values"].bits_per_element == (6 + 16) / 2
    assert rows["keys"].kld != rows["values"].kld


def test_groups_of_tokens_are_whole(model) -> None:
    """KIVI's keys: 16 tokens share a scale; of 40 tokens, 32 fill groups."""
    codec = ChannelCodec(2, 16)
    [_, row] = evaluate(model, CodecFormat("groups", codec, codec), segments=1).values()
    group_bits = 16 * 8 * 2 + 8 * 32  # codes; scale and zero point per channel
    assert row.bits_per_element == (2 * group_bits + 8 * 8 * 16) / (40 * 8)


def test_any_cache_format_is_taken(model) -> None:
    """A class with the members of `CacheFormat`: transformers' own cache, unquantized."""

    class Plain:
        name, attention, arithmetic, longest_chunk, modules = "plain", "sdpa", "float", None, ()

        def make_cache(self):
            return DynamicCache()

        def stored(self, cache):
            return 4, 1

        def identity(self):
            return ""

    rows = evaluate(model, Plain())
    assert rows["plain"].bits_per_element == 32
    assert rows["plain"].kld == pytest.approx(0, abs=1e-9)
    assert math.isclose(rows["plain"].perplexity, rows["unquantized"].perplexity)


def test_the_model_stays_as_it_was(model) -> None:
    before = model.model.config._attn_implementation
    evaluate(model, "int8")
    assert model.model.config._attn_implementation == before
    with pytest.raises(UserError):
        evaluate(model, CodecFormat("wrong", Ragged(), Nibbles()))
    assert model.model.config._attn_implementation == before


class Ragged(Nibbles):
    def decode(self, stored, head_dim):
        return super().decode(stored, head_dim)[..., :-1]


class Double(Nibbles):
    def decode(self, stored, head_dim):
        return super().decode(stored, head_dim).double()


class Bare(Nibbles):
    def encode(self, x):
        return super().encode(x)[0]


class Flat(Nibbles):
    def encode(self, x):
        return tuple(y.flatten(0, 1) for y in super().encode(x))


class Undefined(Nibbles):
    def decode(self, stored, head_dim):
        return super().decode(stored, head_dim) / 0.0


class Together(Nibbles):
    def encode(self, x):
        scale = (x.abs().amax() / 7).half()
        codes = (x / scale.float()).round().clamp(-7, 7).long() + 7
        packed = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        return packed, scale.expand(x.shape[:3])


@pytest.mark.parametrize(
    "codec, message",
    [
        (Ragged(), r"codec of values: decode returns float32 \[1, 2, 3, 7\]; must be float32 \[1"),
        (Double(), r"decode returns float64 \[1, 2, 3, 8\]; must be float32"),
        (Bare(), "encode returns no tuple of tensors"),
        (
            Flat(),
            r"stored tensor 0 has shape \[2, 3, 4\]; its first axes must be \[batch, kv_heads",
        ),
        (Undefined(), "decode returns elements that are not finite"),
        (Together(), "a token is decoded to another vector when later tokens are encoded with it"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Nibbles) else "",
)
def test_what_a_codec_does_wrong_is_said(model, codec, message) -> None:
    with pytest.raises(UserError, match=rf"^format 'mine': .*{message}"):
        evaluate(model, CodecFormat("mine", TokenCodec(4, True), codec))


def test_what_is_not_allowed(model) -> None:
    with pytest.raises(UserError, match=r"^formats: 'int4' is there twice; names must differ"):
        evaluate(model, "int4", CodecFormat("int4", Nibbles(), Nibbles()))
    with pytest.raises(UserError, match=r"^formats: 'unquantized' is there twice"):
        evaluate(model, CodecFormat("unquantized", Nibbles(), Nibbles()))
    with pytest.raises(UserError, match="code: 'int5' is not a cache code"):
        evaluate(model, "int5")
    with pytest.raises(UserError, match="text has 200 tokens; 9 segments of 40 need 360"):
        evaluate(model, "int4", segments=9)
    with pytest.raises(ValueError, match="window"):
        CodecFormat("mine", Nibbles(), Nibbles(), window=-1)
