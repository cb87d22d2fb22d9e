"""Decoding through `generate()`, and the command line around it."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from decode_command import PROMPT, arguments
from safetensors import safe_open
from tiny_model import prompt, tiny_model
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from golden.attend.backends import GoldenBackend
from golden.cache.attention_job import AttentionJob
from golden.cache.saturation import saturation
from golden.engine import Attention
from golden.llm.calibration import calibrate
from golden.llm.capture import load_captured
from golden.llm.decoding import decode, decode_unquantized, make_cache, needed_context
from golden.llm.models import load_model
from kvtq_hw.commands.decode import DEFAULT_PROMPT
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.frame.session import load_session, on_engine, on_float, on_golden
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.cycle_model import bound_cycles
from kvtq_hw.contract.errors import UserError

TINY = load_config("tiny")
CODE = CacheCode("balanced", 3, 2)


def test_greedy_decoding_is_the_argmax_step_by_step():
    language_model = tiny_model()
    measured = calibrate(language_model, prompt(60), tokens=50)
    cache = make_cache(TINY, CODE, measured, GoldenBackend())
    seen = []
    decoded = decode(language_model, PROMPT, 12, cache, seen.append)
    assert len(decoded.tokens) == 12
    assert decoded.steps == 11
    assert decoded.context == 9 + 11 == cache.get_seq_length()
    assert decoded.text == language_model.tokenizer.decode(decoded.tokens)
    assert [len(entry.tokens) for entry in seen] == list(range(1, 13))
    assert seen[-1] == decoded
    assert decoded.tokens_per_second == 11 / decoded.seconds

    # the same by hand, on a second cache
    again = make_cache(TINY, CODE, measured, GoldenBackend())
    ids = torch.tensor([decoded.prompt_tokens])
    language_model.model.set_attn_implementation("kvtq_ternary")
    tokens = []
    with torch.inference_mode():
        for _ in range(12):
            ids = language_model.model(ids, past_key_values=again).logits[:, -1:].argmax(-1)
            tokens.append(ids.item())
    assert tuple(tokens) == decoded.tokens


def test_decoding_leaves_the_model_as_it_was():
    language_model = tiny_model()
    before = language_model.model(torch.tensor([[5, 6, 7]])).logits
    measured = calibrate(language_model, prompt(60), tokens=50)
    decode(language_model, PROMPT, 3, make_cache(TINY, CODE, measured, GoldenBackend()))
    assert torch.equal(language_model.model(torch.tensor([[5, 6, 7]])).logits, before)


def test_unquantized_decoding_is_generate():
    language_model = tiny_model()
    inputs = language_model.tokenizer(PROMPT, return_tensors="pt")
    expected = language_model.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert decode_unquantized(language_model, PROMPT, 8).tokens == tuple(expected[0, 9:].tolist())


def test_prompts_that_do_not_fit():
    language_model = tiny_model()
    measured = calibrate(language_model, prompt(60), tokens=50)

    def attempt(words: int, new_tokens: int) -> None:
        cache = make_cache(TINY, CODE, measured, GoldenBackend())
        decode(language_model, prompt(words) if words else "", new_tokens, cache)

    attempt(62, 3)  # 62 + 2 tokens are read: exactly max_context
    with pytest.raises(UserError) as caught:
        attempt(62, 4)
    assert str(caught.value) == (
        "prompt: 62 tokens and 4 new ones need a context of 65; allowed is at most max_context = 64"
    )
    with pytest.raises(UserError, match="allowed is at most the model's positions, 256"):
        decode_unquantized(language_model, prompt(250), 10)
    with pytest.raises(
        UserError, match=r"^prompt: '' has no tokens; allowed are prompts of at lea"
    ):
        attempt(0, 3)


# --- the command line -----------------------------------------------------------------------------


class EngineDouble:
    """What the flow needs of the RTL's backend, computed by the golden model.

    It stands in for the engine to test the flow around it; the engine itself has its own tests.
    """

    wrong_from: int | None = None
    closed = 0

    def __init__(self, config) -> None:
        self.config = config
        self.cycles = 0

    def attend(self, job: AttentionJob) -> Attention:
        result = GoldenBackend().attend(job)
        self.cycles += 1000
        if self.wrong_from is not None and job.cache.tokens >= self.wrong_from:
            result.values[0, 1, 1, 0, 3] += 1
        return result

    def close(self) -> None:
        type(self).closed += 1


@pytest.fixture
def engine(monkeypatch) -> type[EngineDouble]:
    class Engine(EngineDouble):
        pass

    module = types.ModuleType("sim.backends.engine")
    module.EngineBackend = Engine
    monkeypatch.setitem(sys.modules, "sim.backends.engine", module)
    return Engine


def test_command_on_the_golden_backend(tiny_folder, capsys):
    assert run(arguments(tiny_folder, "--max-new-tokens", "6", "--json", "report.json")) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["text"] == tiny_model().tokenizer.decode(report["tokens"])
    assert len(report["tokens"]) == 6
    assert report["context"] == 14
    assert report["preset"] == "tiny"
    assert report["code"] == "balanced:3/2"
    assert report["scale"] == "absmean"
    assert report["bits_per_element"] == (3 * 2 + 2 * 2 + 2) * 8 / 16
    assert report["tokens_per_second"] > 0
    assert report["outputs_compared"] == report["mismatches"] == 0
    assert (report["saturated"], report["saturated_share"]) == (0, 0.0)
    for field in ("tokens_identical", "rtl_cycles", "bound_cycles", "float_error_max"):
        assert report[field] is None
    assert report["text"].split()[0] in capsys.readouterr().out


def test_command_on_the_rtl_backend(tiny_folder, engine, capsys):
    options = ["--backend", "engine", "--max-new-tokens", "6", "--json", "report.json"]
    assert run(arguments(tiny_folder, *options)) == 0
    report = json.loads(Path("report.json").read_text())
    jobs = 5 * 2 * 2  # steps, layers, KV heads
    assert report["tokens_identical"] is True
    assert report["outputs_compared"] == jobs * 2 * 8
    assert report["mismatches"] == 0
    assert report["rtl_cycles"] == 5 * 2 * 1000
    bound = sum(bound_cycles(TINY, tokens, 3, 2) for tokens in range(10, 15))
    assert report["bound_cycles"] == 2 * 2 * bound
    printed = " ".join(capsys.readouterr().out.split())
    assert engine.closed == 1
    assert "identical to those of the golden model alone" in printed
    assert f"compared {jobs * 16} outputs with the golden model, 0 differ" in printed


def test_command_without_checking(tiny_folder, engine):
    options = [
        "--backend",
        "engine",
        "--no-check",
        "--max-new-tokens",
        "4",
        "--json",
        "report.json",
    ]
    assert run(arguments(tiny_folder, *options)) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["tokens_identical"] is None
    assert report["outputs_compared"] == 0
    assert report["rtl_cycles"] == 3 * 2 * 1000


def test_command_fails_where_the_rtl_differs(tiny_folder, engine, capsys):
    engine.wrong_from = 12
    options = ["--backend", "engine", "--max-new-tokens", "6", "--json", "report.json"]
    assert run(arguments(tiny_folder, *options)) == 1
    report = json.loads(Path("report.json").read_text())
    assert report["mismatches"] == 1
    assert report["tokens_identical"] is None
    assert len(report["tokens"]) == 3  # the steps at contexts 10 and 11 were right
    assert engine.closed == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "kvtq-hw: error: the RTL differs from the golden model: layer 0, query head 3 (KV head 1), "
        "token 11, dimension 3: "
    )
    (saved,) = Path("build/mismatch").iterdir()
    assert str(saved) in error
    with safe_open(saved, framework="pt") as file:
        assert file.get_tensor("keys.digits").shape == (1, 2, 12, 3, 8)


def test_command_fails_where_the_tokens_differ(tiny_folder, engine, monkeypatch, capsys):
    """The second run is a run of its own: change it, and the report says so."""
    from golden.llm import decoding

    real = decoding.decode
    runs = []

    def other_prompt_the_second_time(language_model, text, *rest):
        runs.append(text)
        return real(language_model, text if len(runs) == 1 else prompt(9, seed=5), *rest)

    monkeypatch.setattr(decoding, "decode", other_prompt_the_second_time)
    options = ["--backend", "engine", "--max-new-tokens", "6", "--json", "report.json"]
    assert run(arguments(tiny_folder, *options)) == 1
    assert json.loads(Path("report.json").read_text())["tokens_identical"] is False
    assert "the golden model alone continues differently" in capsys.readouterr().err


def test_command_on_the_float_backend_and_unquantized(tiny_folder):
    more = ["--max-new-tokens", "4", "--json", "report.json"]
    assert run(arguments(tiny_folder, "--backend", "float", *more)) == 0
    report = json.loads(Path("report.json").read_text())
    assert 0 < report["float_error_rms"] < 0.1
    assert report["float_error_max"] > 0
    assert run(arguments(tiny_folder, "--backend", "unquantized", *more)) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["code"] is report["scale"] is report["bits_per_element"] is None


def test_a_session_on_each_backend_decodes_the_same(tiny_folder, engine):
    """And each is what its name says: nothing of another backend stays."""
    model = load_model(str(tiny_folder))
    loaded = load_session(model, CODE, needed_context(model, PROMPT, 6), preset=TINY)
    expected = loaded.decode(PROMPT, 6)
    assert needed_context(model, PROMPT, 6) == expected.context
    with on_engine(loaded) as alone:
        assert alone.decode(PROMPT, 6).tokens == expected.tokens
        assert (alone.checked, alone.compare_memory) == (None, None)
    with on_engine(loaded, check=True) as session:
        assert session.decode(PROMPT, 6).tokens == expected.tokens
        assert session.checked.outputs_compared == 5 * 2 * 2 * 2 * 8
        assert session.hardware.cycles == 5 * 2 * 1000
        for other in (on_golden(session), on_float(session)):
            assert other.hardware is other.checked is None
            assert other.decode(PROMPT, 2).tokens == expected.tokens[:2]
        assert session.checked.outputs_compared == 5 * 2 * 2 * 2 * 8
    assert engine.closed == 2


def test_residual_code_takes_the_papers_scale(tiny_folder):
    more = ["--code", "residual:4/3", "--max-new-tokens", "2", "--json", "report.json"]
    assert run(arguments(tiny_folder, *more)) == 0
    report = json.loads(Path("report.json").read_text())
    assert (report["code"], report["scale"]) == ("residual:4/3", "max")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "preset: 'huge' is unknown; allowed are llama3-8b, smollm2, tiny"),
        (["--preset", "smollm2"], "head_dim is 64, must be 8; query_group is 3, must be 2\n"),
        (["--code", "balanced:9/2"], "code: 'balanced:9/2' is not a cache code; allowed are"),
        (["--model", "gone.gguf"], "model file 'gone.gguf': no such file"),
        (
            ["--max-new-tokens", "57"],
            "configuration 'tiny' does not fit model '{model}': max_context is 64, must be at "
            "least 65\n",
        ),
        (["--max-new-tokens", "0"], "0 is not in the range 1<=x<=1048576"),
        (["--prompt", ""], "prompt: '' has no tokens"),
        (["--json", "/dev/null/r.json"], "--json '/dev/null/r.json': '/dev/null' is not a folder"),
        (["--backend", "fpga"], "'fpga' is not one of 'rtl', 'engine', 'golden', 'float', 'unqu"),
    ],
)
def test_bad_input_is_one_line(tiny_folder, capsys, options, message):
    assert run(arguments(tiny_folder, *options)) != 0
    captured = capsys.readouterr()
    assert message.format(model=tiny_folder) in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


def test_a_configuration_that_does_not_fit_is_refused_once(tiny_folder, engine, capsys):
    """By every command that runs a cache, in the same words, whatever the backend."""
    Path("narrow.toml").write_text(
        'name = "narrow"\nhead_dim = 16\nquery_group = 1\nlanes = 4\nmax_planes = 2\n'
    )
    model, code = ["--model", str(tiny_folder)], ["--code", "balanced:3/2"]
    message = (
        f"kvtq-hw: error: configuration 'narrow' does not fit model {str(tiny_folder)!r}: head_dim "
        "is 16, must be 8; query_group is 1, must be 2; max_planes is 2, must be at least 3 for "
        "code 'balanced:3/2'\n"
    )
    size = ["--context", "40", "--segments", "1"]
    for command in (
        ["decode", "--backend", "golden"],
        ["decode", "--backend", "float"],
        ["decode", "--backend", "engine"],
        ["capture"],
        ["eval", *size],
    ):
        assert run([*command, "--preset", "narrow.toml", *model, *code]) == 1
        assert capsys.readouterr().err == message


def test_without_a_preset_the_configuration_is_fitted(tiny_folder, engine):
    for backend in ("golden", "float", "engine"):
        line = ["decode", "--model", str(tiny_folder), "--prompt", PROMPT, "--backend", backend]
        assert run([*line, "--max-new-tokens", "3", "--json", "report.json"]) == 0
        assert json.loads(Path("report.json").read_text())["preset"] == "fitted"
    line = ["capture", "--model", str(tiny_folder), "--prompt", PROMPT, "-o", "captured"]
    assert run([*line, "--json", "captured.json"]) == 0
    [saved] = json.loads(Path("captured.json").read_text())["files"]
    config = load_captured(Path(saved["file"])).config
    assert saved["file"] == "captured/layer0-head0-step0.safetensors"
    assert (config.head_dim, config.query_group, config.lanes) == (8, 2, 8)
    assert config.table_heads == 4


@pytest.mark.parametrize(
    ("code", "per_layer_and_head"),
    [
        # a residual digit is a run of its own: 4 + 3 slices of two cycles, whatever fits a slice
        ("residual:4/3", 2 * 7 * (10 + 11 + 12 + 13 + 14)),
        # five tokens in five digits, 2 slices of three planes and 3 of two; others 2 + 2 runs
        ("residual:2/2,sinks=1,window=4", 2 * (5 * 5 * 5 + 4 * (5 + 6 + 7 + 8 + 9))),
        # one run: 1 slice of three planes, 1 of two
        ("balanced:3/2", 2 * 2 * (10 + 11 + 12 + 13 + 14)),
    ],
)
def test_bound_with_several_planes_a_cycle(tiny_folder, engine, code, per_layer_and_head):
    Path("planes.toml").write_text(
        'name = "planes"\nhead_dim = 8\nquery_group = 2\nlanes = 4\n'
        "key_planes_per_cycle = 3\nvalue_planes_per_cycle = 2\n"
    )
    options = ["--backend", "engine", "--no-check", "--preset", "planes.toml", "--code", code]
    line = arguments(tiny_folder, *options, "--max-new-tokens", "6", "--json", "report.json")
    assert run(line) == 0
    bound = json.loads(Path("report.json").read_text())["bound_cycles"]
    assert bound == 2 * 2 * per_layer_and_head  # layers, KV heads


@pytest.mark.parametrize(
    ("code", "text"),
    [("balanced:3/2", " paint. She had a "), ("residual:4/3", " paint. She had a big ")],
)
def test_smollm2_writes_english(smollm2_wheel, tmp_path, code, text):
    report_file = tmp_path / "report.json"
    options = ["--code", code, "--max-new-tokens", "8", "--json", str(report_file)]
    assert run(["decode", *options]) == 0
    report = json.loads(report_file.read_text())
    assert report["prompt"] == DEFAULT_PROMPT
    assert report["text"].startswith(text)  # both go on in English, each its way


def narrow_exponents(monkeypatch) -> None:
    """Calibrations of now choose units so small that large elements do not fit."""
    monkeypatch.setattr("golden.llm.calibration._HEAD_ROOM", -2)


@pytest.mark.parametrize("feedback", [False, True], ids=["plain", "equalized"])
def test_saturated_elements_are_counted_by_hand(feedback, monkeypatch):
    narrow_exponents(monkeypatch)
    language_model = tiny_model()
    measured = calibrate(language_model, prompt(60), tokens=50)
    cache = make_cache(TINY, replace(CODE, feedback=feedback), measured, GoldenBackend())
    seen = []

    def attention(module, query, key, value, *args, **kwargs):
        layer = module.layer_idx
        exponents = measured.plain_key_exponents, measured.plain_value_exponents
        scaled, mapped = key, value
        if feedback:
            exponents = measured.key_exponents, measured.value_exponents
            scaled = key.double() / measured.key_scales[layer][:, None]
            mapped = value.double() @ measured.value_bases[layer]
        seen.append((exponents[0][layer], scaled))
        seen.append((exponents[1][layer], mapped))
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

    AttentionInterface.register("seen", attention)
    AttentionMaskInterface.register("seen", sdpa_mask)
    ids = torch.tensor([language_model.tokenizer(PROMPT).input_ids])
    with torch.inference_mode(), language_model.attending_with("seen"):
        keys_and_values = DynamicCache()
        language_model.model(ids, past_key_values=keys_and_values)
    for layer, of_layer in zip(cache.layers, keys_and_values.layers, strict=True):
        layer.update(of_layer.keys, of_layer.values)
    expected = sum(
        int((torch.round(states.double() / 2.0**exponent).abs() > 32767).sum())
        for exponent, states in seen
    )
    assert expected > 0
    found = saturation(cache)
    assert found == (expected, 2 * 2 * 2 * 9 * 8)
    assert found.share == expected / 576
    assert saturation(DynamicCache()) == (0, 0)
    assert saturation(DynamicCache()).share == 0


def test_commands_show_saturated_elements(tiny_folder, tmp_path, monkeypatch, capsys):
    narrow_exponents(monkeypatch)
    words = "saturated: they did not fit the 16 bits that calibration chose"
    assert run(arguments(tiny_folder, "--max-new-tokens", "4", "--json", "report.json")) == 0
    report = json.loads(Path("report.json").read_text())
    assert report["saturated"] > 0
    assert report["saturated_share"] == report["saturated"] / (2 * 2 * 2 * 12 * 8)
    assert words in " ".join(capsys.readouterr().out.split())

    line = ["--model", str(tiny_folder), "--prompt", PROMPT]
    assert run(["capture", *line, "-o", "captured"]) == 0
    assert words in capsys.readouterr().out

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("text.txt").write_text(prompt(150, seed=9))
    size = ["--context", "40", "--segments", "2", "--text", "text.txt"]
    codes = ["--code", "balanced:3/2", "--code", "int8"]
    assert run(["eval", "--model", str(tiny_folder), *size, *codes, "--json", "eval.json"]) == 0
    ternary, integer = json.loads(Path("eval.json").read_text())["rows"]
    assert ternary["saturated"] > 0
    assert ternary["saturated_share"] == ternary["saturated"] / (2 * 2 * 2 * 2 * 40 * 8)
    assert (integer["saturated"], integer["saturated_share"]) == (0, 0.0)
    shown = capsys.readouterr().out
    assert f"balanced:3/2: {ternary['saturated']:,} elements of keys and values (" in shown
    assert "int8: " not in shown
