"""Capture and replay: the saved job is the decode's own, and the simulators compute it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from bench_matrix import FOLDER
from click.testing import CliRunner
from input_files import calibration
from safetensors import safe_open
from safetensors.torch import save
from tiny_model import prompt, save_tiny_model, tiny_model, with_window

from golden.cache.attention_job import AttentionJob
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.conditioning import Conditioning
from golden.dequantizer import dequantize
from golden.learned_sinks import LearnedSinks
from golden.llm.capture import CaptureBackend, load_captured
from golden.llm.decoding import decode, make_cache
from golden.quantizer import quantize
from kvtq_hw.commands.capture import command as capture
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.replay import command as replay
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("capture")
    model = save_tiny_model(folder / "model")
    options = ["--preset", "tiny", "--model", str(model), "--prompt", prompt(20)]
    options += ["--code", "balanced:3/2,sinks=2,window=4", "-o", str(folder / "out")]
    options += ["--layer", "0", "--layer", "1", "--head", "1", "--step", "0", "--step", "5"]
    result = CliRunner().invoke(capture, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = sorted((folder / "out").iterdir())
    assert [file.name for file in found] == [
        f"layer{layer}-head1-step{step}.safetensors" for layer in (0, 1) for step in (0, 5)
    ]
    return found


def test_captured_jobs_are_of_their_steps(files):
    first, later = load_captured(files[0]), load_captured(files[1])
    assert len(first.key_depths) == 21 and len(later.key_depths) == 26
    assert first.key_depths.tolist() == [5] * 2 + [3] * 15 + [5] * 4
    assert first.value_depths.tolist() == [5] * 2 + [2] * 15 + [5] * 4
    assert torch.equal(first.golden(), first.expected)
    assert first.expected.any()
    # sinks and body never change
    assert torch.equal(first.keys.digits[:17], later.keys.digits[:17])


@pytest.mark.parametrize(
    ("code", "in_tier"),
    [
        ("balanced:3/2", 0),
        ("balanced:3/2,sinks=2,window=4", 6),
        ("balanced:3/2,sinks=2,window=4,sliding=11", 4),
        ("balanced:3/2,sinks=2,window=4,anchors=3", 9),
    ],
)
def test_vectors_of_a_capture_are_those_that_were_rounded(code, in_tier):
    """In the order of the planes: rounding them gives the planes of every token again."""
    config, backend = load_config("tiny"), CaptureBackend((1,), (0, 1), (0, 3))
    measured = dataclasses.replace(calibration(), anchor_thresholds=torch.full((2, 2), 160))
    parsed, model = CacheCode.parse(code), tiny_model()
    if parsed.tiers.sliding:
        model = with_window(model, parsed.tiers.sliding)
    cache = make_cache(config, parsed, measured, backend, model.windows)
    decode(model, prompt(20), 5, cache)
    order = cache.layers[1].keys.view().order(parsed.tiers)
    assert (order is None) == (parsed.tiers.sliding is None and not parsed.tiers.anchors)
    assert order is None or (order[0, 1].diff() < 0).any()  # not that of arrival
    assert len(backend.captured) == 4
    for job in backend.captured:
        spread = parsed.tiers.spread(21 + job.step)
        for name, digits in (("key", 3), ("value", 2)):
            vectors = getattr(job, f"{name}_vectors").long()
            planes, depths = getattr(job, f"{name}s"), getattr(job, f"{name}_depths")
            assert int((depths == 5).sum()) == in_tier
            tier = quantize(config, vectors, "balanced", 5, "absmean")
            left = dequantize(config, tier) if spread.window else vectors
            moved = {n: quantize(config, left, "balanced", n, "absmean") for n in (digits, 5)}
            for token, depth in enumerate(depths.tolist()):
                stays = token < spread.sinks or token >= spread.tokens - spread.window
                expected = tier if stays and spread.window else moved[depth]
                for field in ("digits", "unit", "fraction", "exponent"):
                    found = getattr(planes, field)[token, :depth]
                    assert torch.equal(found, getattr(expected, field)[token])


def test_a_capture_needs_every_pass_of_its_layers():
    config, backend = load_config("tiny"), CaptureBackend((0,), (0,), (0, 1))
    layer = TernaryCacheLayer(
        config, CacheCode.parse("balanced:1/1"), Conditioning(True, None, -12, -12), backend
    )
    passes = [layer.update(*torch.randn(2, 1, 2, count, 8))[0] for count in (4, 1, 2, 1)]
    queries = torch.randn(1, 2, 2, 4, 8, dtype=torch.float64)

    def attend(index: int) -> None:
        count = passes[index].new_tokens
        backend.attend(AttentionJob(0, queries[..., :count, :], passes[index], None))

    attend(0)
    with pytest.raises(ValueError, match=r"^layer 0: 1 tokens came in passes that were not comp"):
        attend(2)
    attend(1)
    attend(2)
    attend(1)  # two tokens were removed
    with pytest.raises(ValueError, match=r"^layer 0: 2 tokens came in passes"):
        attend(3)
    for job in backend.captured:
        assert len(job.key_vectors) == len(job.value_vectors) == 5


def test_captures_without_the_vectors_are_to_be_made_again(files, tmp_path, capsys):
    old, path = tmp_path / "old.safetensors", str(files[0])
    with safe_open(files[0], framework="pt") as file:
        metadata = {key: file.metadata()[key] for key in ("config", "place")}
        tensors = {key: file.get_tensor(key) for key in file.keys() if "_vectors" not in key}  # noqa: SIM118
    old.write_bytes(save(tensors, metadata))
    for command in ("replay", "power"):
        assert run([command, str(old)]) == 1
        assert capsys.readouterr().err == (
            f"kvtq-hw: error: captured attention {str(old)!r}: not a kvtq-hw capture 2 file, which "
            "has the vectors from before rounding; capture again\n"
        )
    assert load_captured(Path(path)).key_vectors.any()


def test_replay_compares_and_records(files, simulator, tmp_path):
    options = [str(files[1]), "--simulator", simulator, "--waves", "--build-folder", str(FOLDER)]
    options += ["--json", str(tmp_path / "r.json")]
    result = CliRunner().invoke(replay, options, catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "16 outputs equal, 26 tokens in " in result.output
    waves = Path(result.output.partition("waves: ")[2].strip())
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["outputs_compared"], report["tokens"], report["differences"]) == (16, 26, [])
    assert report["waves"] == str(waves) and f" {report['cycles']} cycles" in result.output
    assert waves.suffix == (".fst" if simulator == "icarus" else ".vcd")
    pywellen = pytest.importorskip("pywellen")
    signals = {signal.full_name: signal for signal in pywellen.Waveform(str(waves)).all_vars()}
    # states in the order in which an attention goes through them, one after the other
    assert texts(signals["kvtq_engine.sequencer.fsm_state_text"])[:5] == [
        *("IDLE", "QUERY", "KEYS", "VALUES", "KEYS")
    ]
    assert set(texts(signals["kvtq_engine.weight_scaler.operation_text"])) >= {"CLEAR", "DRAIN"}
    for part in ("fraction", "exponent", "unit", "last", "elements"):
        assert f"kvtq_engine.keys__payload_{part}" in signals
    # the view shows what is there
    view = waves.with_suffix(".gtkw").read_text()
    assert f'[dumpfile] "{waves}"' in view
    shown = [line for line in view.splitlines() if line.startswith("kvtq_engine.")]
    assert len(shown) > 20 and set(shown) <= set(signals)


def test_replay_starts_from_learned_sinks(files, tmp_path, simulator):
    job = load_captured(files[1])
    assert not job.learned_sinks.weight.any()
    sinks = LearnedSinks(torch.tensor([-2, 3]), torch.tensor([256, 140]))
    starting = dataclasses.replace(job, learned_sinks=sinks)
    starting = dataclasses.replace(starting, expected=starting.golden())
    assert (starting.expected != job.expected).any(-1).all()
    file = tmp_path / "sinks.safetensors"
    starting.save(file)
    assert load_captured(file).learned_sinks.weight.tolist() == [256, 140]
    options = [str(file), "--simulator", simulator, "--build-folder", str(FOLDER)]
    result = CliRunner().invoke(replay, options, catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "16 outputs equal, 26 tokens in " in result.output


def test_capture_and_replay_of_a_layer_with_a_sliding_window(tmp_path, simulator):
    """Eleven tokens are left; the body, a ring, is read from its first slot on."""
    language_model, folder = with_window(tiny_model(), 11), tmp_path / "model"
    language_model.model.save_pretrained(folder)
    language_model.tokenizer.save_pretrained(folder)
    options = ["--preset", "tiny", "--model", str(folder), "--prompt", prompt(20)]
    options += ["--code", "balanced:3/2,sinks=2,window=4", "-o", str(tmp_path)]
    options += ["--layer", "1", "--step", "0", "--step", "1"]
    result = CliRunner().invoke(capture, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    first, second = (load_captured(x) for x in sorted(tmp_path.glob("*.safetensors")))
    assert (first.step, second.step) == (0, 1)
    for job in (first, second):
        assert job.key_depths.tolist() == [3] * 7 + [5] * 4
        assert job.value_depths.tolist() == [2] * 7 + [5] * 4
        assert torch.equal(job.golden(), job.expected)
    # tokens 18 to 21 are in the window: token 17 has come to the body, a ring of seven slots
    changed = (first.keys.digits != second.keys.digits).flatten(1).any(1)
    assert changed[:7].nonzero()[:, 0].tolist() == [(17 - 2) % 7]
    file = tmp_path / "layer1-head0-step1.safetensors"
    arguments = [str(file), "--simulator", simulator, "--build-folder", str(FOLDER)]
    result = CliRunner().invoke(replay, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 0, result.output
    assert "16 outputs equal, 11 tokens in " in result.output


def texts(signal) -> list[str]:
    """The values of a signal that holds ASCII text."""
    found = [value for _, value in signal.signal]
    return [
        value.to_bytes(-(-value.bit_length() // 8)).decode()
        for value in found
        if isinstance(value, int)
    ]


def test_other_outputs_are_refused(files, tmp_path):
    job = load_captured(files[0])
    wrong = tmp_path / "wrong.safetensors"
    dataclasses.replace(job, expected=job.expected + 1).save(wrong)
    with pytest.raises(UserError, match=r"the golden model of today gives other outputs$"):
        CliRunner().invoke(replay, [str(wrong)], catch_exceptions=False, standalone_mode=False)


def test_what_is_no_capture_is_one_line(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"nothing")
    assert run(["replay", str(file)]) == 1
    assert f"error: captured attention {str(file)!r}: " in capsys.readouterr().err


def test_layers_that_are_not_there(tmp_path, capsys):
    model = save_tiny_model(tmp_path / "model")
    options = ["capture", "--preset", "tiny", "--model", str(model), "--layer", "2"]
    assert run(options) == 1
    assert "--layer: 2 is not allowed; must be 0..1" in capsys.readouterr().err
