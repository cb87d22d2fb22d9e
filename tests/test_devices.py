"""A model on another device and in another dtype: the same numbers, and no tensor left behind."""

from __future__ import annotations

import pytest
import torch
from pretend_device import GPU, WrongDevice, moved, pretended_gpu
from tiny_model import prompt, tiny_model

from golden.attend.backends import FloatBackend, GoldenBackend
from golden.attend.single_precision import SinglePrecisionBackend
from golden.llm.calibration import calibrate
from golden.llm.models import LanguageModel
from golden.study.allocator import measure_sensitivity
from golden.study.catalog import parse_format
from golden.study.formats import CacheFormat, FormatInputs, calibration_digest
from golden.study.key_error import score_errors
from golden.study.needle import make_haystack, retrieve
from golden.study.quality import cut_segments, evaluate_reference, evaluate_segment
from kvtq_hw.contract.codes import CacheCode

ON_CPU = tiny_model()
ON_GPU = LanguageModel("tiny", moved(tiny_model().model), ON_CPU.tokenizer)
CALIBRATION = calibrate(ON_CPU, prompt(60), tokens=50)
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
)


def parse(code: str, backend: str = "single") -> CacheFormat:
    inputs = FormatInputs(ON_CPU, CONFIG, lambda: CALIBRATION)
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
        errors = score_errors(language_model, CALIBRATION.conditioning(), CONFIG, code)
    losses = measure_sensitivity(language_model, CALIBRATION, CONFIG, code, 40).losses()
    return [*map(calibration_digest, calibrations), errors.tolist(), losses.tolist()]


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
