"""A model on another device and in another dtype: the same attention, no tensor left behind."""

from __future__ import annotations

import json

import pytest
import torch
from pretend_device import GPU, WrongDevice, moved, pretended_gpu
from tiny_model import prompt, save_tiny_model, tiny_model
from torch import Tensor
from transformers import AttentionInterface, Gemma3ForCausalLM, Gemma3TextConfig

from golden.attend.attention import ATTENTION
from golden.attend.backends import FloatBackend, GoldenBackend
from golden.attend.single_precision import SinglePrecisionBackend
from golden.llm.calibration import calibrate
from golden.llm.decoding import make_cache
from golden.llm.devices import find_device, find_dtype
from golden.llm.models import LanguageModel, load_model
from golden.study.allocator import measure_sensitivity
from golden.study.catalog import parse_format
from golden.study.coded_layers import coded_layers
from golden.study.formats import CacheFormat, FormatInputs, calibration_digest
from golden.study.key_error import score_errors
from golden.study.needle import make_haystack, retrieve
from golden.study.quality import cut_segments, evaluate_reference, evaluate_segment
from golden.study.spectral import fit
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.errors import UserError

ON_CPU = tiny_model()
ON_GPU = LanguageModel("tiny", moved(tiny_model().model), ON_CPU.tokenizer)


def hybrid_model() -> LanguageModel:
    """A Gemma 3 of three layers, two of them with a sliding window of ten tokens."""
    config = Gemma3TextConfig(
        **{"vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        **{"max_position_embeddings": 256, "sliding_window": 10, "initializer_range": 0.3},
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
    )
    torch.manual_seed(0)
    return LanguageModel("hybrid", Gemma3ForCausalLM(config).eval(), ON_CPU.tokenizer)


HYBRID = hybrid_model()
CALIBRATION = calibrate(ON_CPU, prompt(60), tokens=50)
ROTATIONS = fit(ON_CPU, 40)
CONFIG = ON_CPU.engine_config(256)
TOKENS = cut_segments(ON_CPU, prompt(60, seed=3), 24, 1)[0]

BACKENDS = {
    "integer": GoldenBackend(),
    "double": FloatBackend(),
    "single": SinglePrecisionBackend(),
}
TERNARY = (
    "balanced:3/2",
    "balanced:2/1,sinks=2,window=8,feedback",
    "residual:2/2,sinks=2,window=8",
    "balanced:2/2,scale=lsq",
    "kvtq:3/2",
)
BASELINES = (
    "bf16",
    "int3,clip,group=4,asymmetric",
    "int2,conditioned,feedback,sinks=2,window=8",
    "kivi:4,group=8,window=8",
    "oscar,sinks=2,window=8",
)


def parse(code: str, backend: str = "single") -> CacheFormat:
    inputs = FormatInputs(ON_CPU, CONFIG, lambda: CALIBRATION, lambda model: ROTATIONS)
    return parse_format(code, inputs, BACKENDS[backend])


@pytest.mark.parametrize(
    ("code", "backend"),
    [
        *((code, "integer") for code in TERNARY),
        (TERNARY[1], "double"),
        *((code, "single") for code in (TERNARY[1], *BASELINES)),
    ],
)
def test_scores_of_a_format(code, backend):
    """Prefill in chunks, with tokens that leave the window within a chunk."""
    cache_format = parse(code, backend)
    expected = evaluate_segment(
        ON_CPU, evaluate_reference(ON_CPU, TOKENS, chunk=10), cache_format, chunk=10
    )
    with pretended_gpu():
        reference = evaluate_reference(ON_GPU, TOKENS, chunk=10)
        assert reference.log_probabilities.device == GPU
        assert evaluate_segment(ON_GPU, reference, cache_format, chunk=10) == expected
    assert expected.kld > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_a_model_with_sliding_windows(backend):
    """Rings, whose tokens the engine reads in another order than they came in."""
    found = calibrate(HYBRID, prompt(60), tokens=50)
    inputs = FormatInputs(HYBRID, HYBRID.engine_config(64), lambda: found)
    formats = [
        parse_format(code, inputs, BACKENDS[backend])
        for code in ("balanced:2/1,sinks=2,window=4,feedback", "balanced:2/2")
    ]
    on_gpu = LanguageModel("hybrid", moved(hybrid_model().model), ON_CPU.tokenizer)
    reference = evaluate_reference(HYBRID, TOKENS, chunk=10)
    expected = [evaluate_segment(HYBRID, reference, x, chunk=10) for x in formats]
    with pretended_gpu():
        reference = evaluate_reference(on_gpu, TOKENS, chunk=10)
        assert [evaluate_segment(on_gpu, reference, x, chunk=10) for x in formats] == expected
    assert all(score.kld > 0 for score in expected)


@pytest.mark.parametrize("code", [None, "balanced:2/1,sinks=2,window=8,feedback", "int8"])
def test_needles(code):
    """Decode steps of a batch, on a copy of the cache."""
    segment = cut_segments(ON_CPU, prompt(200, seed=3), 200, 1)[0]
    haystack = make_haystack(ON_CPU, segment, 0)
    cache_format = code and parse(code)
    expected = retrieve(ON_CPU, haystack, cache_format)
    with pretended_gpu():
        assert retrieve(ON_GPU, haystack, cache_format) == expected


def measured(language_model: LanguageModel) -> list[object]:
    """A calibration of a text and one of the model's own text, and what is measured with one."""
    code = CacheCode.parse("balanced:2/1,sinks=2,window=8,feedback")
    # outside inference mode, PyTorch chooses the model's own attention by the device
    with torch.inference_mode():
        calibrations = [calibrate(language_model, text, 40) for text in (prompt(60), None)]
        rotations = fit(language_model, 40)
        errors = score_errors(
            coded_layers(language_model, CALIBRATION.conditioning(), CONFIG, code)
        )
    losses = measure_sensitivity(language_model, CALIBRATION, CONFIG, code, 40).losses()
    digests = map(calibration_digest, [*calibrations, rotations])
    return [*digests, errors.tolist(), losses.tolist()]


def test_calibration_and_what_is_measured_with_it():
    expected = measured(ON_CPU)
    with pretended_gpu():
        assert measured(ON_GPU) == expected


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    with pretended_gpu():
        there, here = torch.ones(2, 2, device=GPU), torch.ones(2, 2)
        with pytest.raises(WrongDevice, match="tensors on the GPU and on the CPU"):
            there + here
        with pytest.raises(WrongDevice, match="NumPy"):
            there.numpy()
        with pytest.raises(WrongDevice, match="no product"):
            there.long() @ there.long()
        with pytest.raises(WrongDevice, match="generator"):
            torch.rand(2, device=GPU, generator=torch.Generator())
        assert (there + torch.tensor(1)).tolist() == [[2.0, 2.0], [2.0, 2.0]]
        assert there.device == GPU and (there @ there).device == GPU


# --- dtypes ---------------------------------------------------------------------------------------


def attention(
    code: str,
    states: list[Tensor],
    sinks: Tensor | None = None,
    backend: str = "integer",
) -> Tensor:
    """The outputs of a layer's attention for queries, keys and values, with learned sinks."""
    queries, keys, values = states
    cache = make_cache(CONFIG, CacheCode.parse(code), CALIBRATION, BACKENDS[backend])
    result, _ = cache.layers[0].update(keys, values)
    module = ON_CPU.model.model.layers[0].self_attn
    return AttentionInterface()[ATTENTION](module, queries, result, result, None, s_aux=sinks)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_learned_sinks(backend):
    code = "balanced:2/1,sinks=2,window=4,feedback"
    generator = torch.Generator().manual_seed(1)
    states = [torch.randn(1, heads, 12, 8, generator=generator) for heads in (4, 2, 2)]
    sinks = torch.randn(4, generator=generator)
    expected = attention(code, states, sinks, backend)
    assert not torch.equal(expected, attention(code, states, None, backend))
    with pretended_gpu():
        there = [x.to(GPU) for x in states]
        found = attention(code, there, sinks.to(GPU), backend)
        assert found.device == GPU
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("code", ["balanced:2/2", "balanced:2/1,sinks=2,window=4,feedback"])
def test_the_cache_s_attention_is_that_of_the_same_numbers_in_float32(code, dtype):
    """Nothing is computed in the model's dtype: only the outputs are rounded to it."""
    generator = torch.Generator().manual_seed(1)
    states = [
        torch.randn(1, heads, 12, 8, generator=generator).to(dtype).float() for heads in (4, 2, 2)
    ]
    expected = attention(code, states)
    found = attention(code, [x.to(dtype) for x in states])
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_a_model_in_another_dtype(tmp_path):
    folder = str(save_tiny_model(tmp_path))
    models = {name: load_model(folder, dtype=name) for name in ("float32", "bfloat16", "float16")}
    assert {str(x.model.dtype) for x in models.values()} == {f"torch.{name}" for name in models}
    # results and calibrations are kept under the fingerprint
    assert len({model.fingerprint for model in models.values()}) == 3
    assert load_model(folder).fingerprint == models["float32"].fingerprint
    weights = models["bfloat16"].model.lm_head.weight
    assert torch.equal(weights, models["float32"].model.lm_head.weight.bfloat16())


def test_eval_in_bfloat16(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("golden.llm.calibration.DEFAULT_TOKENS", 60)
    save_tiny_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(prompt(50, seed=9))
    command = ["eval", "--model", "./model", "--text", "text.txt", "--context", "40"]
    command += ["--segments", "1", "--code", "unquantized", "--code", "balanced:3/2"]
    results = {}
    for dtype in ("float32", "bfloat16"):
        assert run([*command, "--dtype", dtype, "--json", f"{dtype}.json"]) == 0
        results[dtype] = json.loads((tmp_path / f"{dtype}.json").read_text())
        assert (results[dtype]["device"], results[dtype]["dtype"]) == ("cpu", dtype)
    full, half = (results[dtype]["rows"] for dtype in ("float32", "bfloat16"))
    assert [row["bits_per_element"] for row in full] == [32, full[1]["bits_per_element"]]
    assert [row["bits_per_element"] for row in half] == [16, full[1]["bits_per_element"]]
    assert half[1]["perplexity"] != full[1]["perplexity"]


# --- what is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "CPU", "cpu:0", "cuda:", "cuda:x", "mps", "", "a" * 200])
def test_unknown_devices(name):
    with pytest.raises(UserError, match=r"^device: '.* is unknown; allowed here are cpu"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", "cuda:" + "9" * 5000])
def test_a_gpu_that_is_not_there(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        UserError, match=r"^device: PyTorch \S+ finds no 'cuda.*; allowed here are cpu"
    ):
        find_device(name)


def test_gpus_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [find_device(name) for name in ("cpu", "cuda", "cuda:1")] == [
        torch.device("cpu"),
        torch.device("cuda", 0),
        torch.device("cuda", 1),
    ]
    with pytest.raises(
        UserError, match=r"finds no 'cuda:2'; allowed here are cpu, cuda:0, cuda:1$"
    ):
        find_device("cuda:2")


def test_unknown_dtypes():
    with pytest.raises(UserError) as caught:
        find_dtype("int8")
    assert str(caught.value) == ("dtype: 'int8' is unknown; allowed are float32, bfloat16, float16")


@pytest.mark.parametrize("command", ["eval", "calibrate", "allocate"])
@pytest.mark.parametrize("option", [["--device", "cuda:99"], ["--dtype", "half"]])
def test_a_command_refuses_them_in_one_line_before_it_reads_the_model(
    command, option, capsys, tmp_path
):
    more = {"eval": [], "calibrate": ["-o", "x"], "allocate": ["--bits", "3", "-o", "x.toml"]}
    assert run([command, "--model", str(tmp_path / "nothing"), *more[command], *option]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvtq-hw: error: {option[0][2:]}: ")
    assert option[1] in line


def test_a_gpu_without_enough_memory_is_one_line(monkeypatch, capsys, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("golden.llm.models.load_model", full)
    assert run(["calibrate", "-o", str(tmp_path / "x")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvtq-hw: error: not enough memory on the device; ")
