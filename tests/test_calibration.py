"""Calibration: the centres are mean keys, and a file serves only the model it was made for."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import prompt, save_tiny_model, tiny_model, with_beginning
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from golden.feedback import feedback_from_hessian
from golden.hadamard import hadamard
from golden.llm import calibration as module
from golden.llm.calibration import (
    KEY_DAMPING,
    calibrate,
    load_calibration,
    load_or_calibrate,
    save_calibration,
)
from golden.llm.models import LanguageModel
from golden.llm.sampling import sample_tokens
from golden.llm.watching import watched
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.errors import UserError

TEXT = prompt(80, seed=7)


def test_centres_are_the_mean_equalized_keys():
    language_model = tiny_model()
    found = calibrate(language_model, TEXT, tokens=50)
    assert found.key_centres.shape == (2, 2, 8)
    cache = DynamicCache()
    ids = language_model.tokenizer(TEXT, return_tensors="pt").input_ids[:, :50]
    language_model.model(ids, past_key_values=cache)
    for index, layer in enumerate(cache.layers):
        keys = layer.keys[0].double() / found.key_scales[index][:, None]
        values = layer.values[0].double() @ found.value_bases[index]
        torch.testing.assert_close(found.key_centres[index].double(), keys.mean(-2))
        for vectors, exponents in (
            (keys, found.key_exponents),
            (values, found.value_exponents),
            (layer.keys, found.plain_key_exponents),
            (layer.values, found.plain_value_exponents),
        ):
            room = 32767 * 2.0 ** exponents[index].item() / vectors.abs().max().item()
            assert 2 <= room < 4


def recorded_attention(language_model: LanguageModel, ids: Tensor) -> list[tuple[Tensor, ...]]:
    """Queries [heads, T, D], keys and values [kv_heads, T, D] of each layer."""
    found: list[tuple[Tensor, ...]] = []

    def attention(module, query, key, value, *args, **kwargs):
        found.append((query[0].double(), key[0].double(), value[0].double()))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

    AttentionInterface.register("recorded", attention)
    AttentionMaskInterface.register("recorded", sdpa_mask)
    with language_model.attending_with("recorded"), torch.no_grad():
        language_model.model(ids[None], use_cache=False)
    return found


def test_feedback_of_keys_weighs_queries_by_what_errors_of_their_scores_do():
    """H = E[w q q'], w the squared derivative of the layer's output by the scores of short tokens.

    Derivatives by PyTorch; the first four tokens, where sinks are, do not count.
    """
    language_model = tiny_model()
    ids = language_model.tokenizer(TEXT, return_tensors="pt").input_ids[0, :30]
    found = calibrate(language_model, TEXT, tokens=30)
    layers = language_model.model.model.layers
    passes = recorded_attention(language_model, ids)
    for index, (queries, keys, values) in enumerate(passes):
        projection = layers[index].self_attn.o_proj.weight.detach().double()
        hessian = torch.zeros(2, 8, 8, dtype=torch.float64)
        for head, of_head in enumerate(queries):
            kv_head = head // 2
            out = projection[:, 8 * head : 8 * head + 8]
            for token, query in enumerate(of_head):
                scores = keys[kv_head, : token + 1] @ query / math.sqrt(8)
                seen = values[kv_head, : token + 1]
                moved = torch.func.jacrev(lambda s, v=seen, o=out: o @ (s.softmax(-1) @ v))(scores)
                rotated = hadamard(query * found.key_scales[index, kv_head])
                hessian[kv_head] += moved[:, 4:].square().sum() * rotated.outer(rotated)
        expected = feedback_from_hessian(hessian, KEY_DAMPING).factors
        assert expected.any()
        assert torch.equal(found.key_feedback[index], expected)


def test_a_file_gives_back_what_was_saved(tmp_path):
    language_model = tiny_model()
    path = tmp_path / "new" / "calibration.safetensors"
    saved = calibrate(language_model, TEXT, tokens=50)
    save_calibration(saved, path)
    save_calibration(saved, path)
    loaded = load_calibration(path, language_model)
    for field in module._TENSORS:
        assert torch.equal(getattr(loaded, field), getattr(saved, field))
    for field in ("model_name", "model_fingerprint", "tokens", "text_digest"):
        assert getattr(loaded, field) == getattr(saved, field)
    assert loaded.tokens == 50
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_of_another_model_is_refused(tmp_path):
    path = tmp_path / "calibration.safetensors"
    save_calibration(calibrate(tiny_model(seed=0), TEXT, tokens=50), path)
    other = tiny_model(seed=1)
    with pytest.raises(UserError) as caught:
        load_calibration(path, other)
    message = str(caught.value)
    assert f"calibration file {str(path)!r}: made for model 'tiny', weights " in message
    assert tiny_model(seed=0).fingerprint[:12] in message
    assert other.fingerprint[:12] in message


def test_one_changed_weight_changes_the_fingerprint():
    language_model = tiny_model()
    before = dataclasses.replace(language_model).fingerprint
    with torch.no_grad():
        language_model.model.model.layers[1].self_attn.k_proj.weight[0, 0] += 1e-3
    assert language_model.fingerprint != before
    assert tiny_model().fingerprint == before


@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 100])
def test_files_that_are_no_calibration(tmp_path, content):
    path = tmp_path / "calibration.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_calibration(path, tiny_model())
    assert str(caught.value).startswith(f"calibration file {str(path)!r}: ")
    assert "\n" not in str(caught.value)


def test_safetensors_of_another_kind_are_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_file({"key_centres": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"not a kvtq-hw calibration 8 file$"):
        load_calibration(path, tiny_model())


def test_a_text_that_is_too_short():
    with pytest.raises(
        UserError, match=r"^calibration text has 80 tokens; allowed are texts of at"
    ):
        calibrate(tiny_model(), TEXT, tokens=81)


def test_each_piece_of_a_text_begins_as_the_model_wants_it(monkeypatch):
    monkeypatch.setattr(module, "SEGMENT", 20)
    language_model = with_beginning(tiny_model())
    pieces = module._tokenized(language_model, TEXT, 50)
    assert [len(piece) for piece in pieces] == [20, 20, 10]
    assert {int(piece[0]) for piece in pieces} == {127}
    ids = language_model.tokenizer(TEXT, add_special_tokens=False).input_ids
    assert torch.cat([piece[1:] for piece in pieces]).tolist() == ids[:47]
    assert calibrate(language_model, TEXT, tokens=50).tokens == 50
    # a piece of nothing but its first token is left out
    assert calibrate(language_model, TEXT, tokens=41).tokens == 40


def test_calibrations_with_and_without_a_first_token_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEFAULT_TOKENS", 60)
    plain, begun = (load_or_calibrate(of) for of in (tiny_model(), with_beginning(tiny_model())))
    assert not torch.equal(plain.key_centres, begun.key_centres)


def test_without_a_text_the_model_writes_one():
    language_model = tiny_model()
    found = calibrate(language_model, tokens=100)
    ids = sample_tokens(language_model, 100, 1024)
    assert found.tokens == 100
    text = language_model.tokenizer.decode(ids[0])
    assert torch.equal(found.key_centres, calibrate(language_model, text, tokens=100).key_centres)


def test_default_calibration_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEFAULT_TOKENS", 60)
    calls = []
    measure = module.calibrate
    monkeypatch.setattr(
        module, "calibrate", lambda *arguments: calls.append(1) or measure(*arguments)
    )
    language_model = tiny_model()
    first = load_or_calibrate(language_model)
    second = load_or_calibrate(language_model)
    assert len(calls) == 1
    assert first.tokens == 60
    assert torch.equal(first.key_centres, second.key_centres)
    load_or_calibrate(tiny_model(seed=1))
    assert len(calls) == 2


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(module, "DEFAULT_TOKENS", 60)
    assert load_or_calibrate(tiny_model()).tokens == 60


def test_command_writes_a_file_that_decode_takes(tmp_path, capsys):
    folder = save_tiny_model(tmp_path / "model")
    text, file = tmp_path / "text.txt", tmp_path / "mine.safetensors"
    text.write_text(TEXT)
    arguments = ["calibrate", "--model", str(folder), "--text", str(text), "--tokens", "50"]
    assert run([*arguments, "-o", str(file), "--json", str(tmp_path / "r.json")]) == 0
    expected = calibrate(tiny_model(), TEXT, tokens=50)
    report = json.loads((tmp_path / "r.json").read_text())
    shape = (report["layers"], report["kv_heads"], report["head_dim"])
    assert shape == tuple(expected.key_centres.shape)
    assert (report["text_digest"], report["tokens"]) == (expected.text_digest, 50)
    loaded = load_calibration(file, tiny_model())
    for field in module._TENSORS:
        assert torch.equal(getattr(loaded, field), getattr(expected, field))
    decode = ["decode", "--preset", "tiny", "--model", str(folder), "--prompt", prompt(5)]
    decode += ["--max-new-tokens", "2", "--code", "balanced:2/1,window=3,feedback"]
    assert run([*decode, "--calibration", str(file)]) == 0
    assert run([*decode, "--calibration", str(text)]) == 1
    assert f"calibration file {str(text)!r}: " in capsys.readouterr().err


def test_logits_that_are_not_finite_are_one_line_at_the_first_token():
    language_model = tiny_model()
    with torch.no_grad():
        language_model.model.lm_head.weight.fill_(3e38)  # finite, but their sums are not
    with pytest.raises(UserError) as caught:
        calibrate(language_model, None, tokens=50)
    assert str(caught.value) == (
        "model 'tiny': its logits are not finite at token 1, though its weights are; it cannot be "
        "calibrated"
    )


def test_keys_that_are_not_finite_are_one_line():
    language_model = tiny_model()
    with torch.no_grad():
        language_model.model.model.layers[1].self_attn.k_proj.weight.fill_(3e38)
    with pytest.raises(UserError) as caught:
        calibrate(language_model, prompt(60), tokens=50)
    assert str(caught.value) == (
        "model 'tiny': keys or values of layer 1 are not finite, though its weights are; it cannot "
        "be calibrated"
    )


def test_a_model_without_a_place_for_the_cache_is_refused_before_it_writes_a_text():
    language_model = tiny_model()
    language_model.model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError) as caught:
        calibrate(language_model, None, tokens=1 << 40)
    assert str(caught.value) == (
        "model 'tiny' (llama) does not run on a ternary cache: it has layers of kind "
        "full_attention, linear_attention; allowed are decoders whose layers all attend to the "
        "whole context or to a sliding window by one softmax"
    )


def test_codes_without_feedback_get_plain_vectors():
    """Not equalized: the mean key and the ranges are those of the model's own keys and values."""
    seen = {}

    def watch(inputs):
        seen.setdefault(inputs.layer, []).append((inputs.keys, inputs.values))

    language_model = tiny_model()
    text = prompt(200)
    made = calibrate(language_model, text, tokens=100)
    ids = torch.tensor(language_model.tokenizer(text).input_ids[:100])
    with watched(language_model, watch), torch.no_grad():
        language_model.model(ids[None], use_cache=False)
    for layer, plain in enumerate(made.conditioning(feedback=False)):
        ((keys, values),) = seen[layer]
        assert plain.equalizer is None
        assert (plain.key_feedback, plain.value_feedback) == (None, None)
        centre = plain.key_centre.double() * 2.0**plain.key_exponent
        assert torch.allclose(centre, keys.double().mean(1), atol=2.0**plain.key_exponent)
        for exponent, x in ((plain.key_exponent, keys), (plain.value_exponent, values)):
            assert 2**13 <= x.abs().max() * 2.0**-exponent < 2**14
