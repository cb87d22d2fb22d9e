"""Tiers: who is in more digits, requantization, and chunks that see what single tokens would."""

from __future__ import annotations

import pytest
import torch

from golden.attend.attention import ternary_attention
from golden.attend.backends import FloatBackend, GoldenBackend
from golden.attend.single_precision import SinglePrecisionBackend
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.conditioning import Conditioning
from golden.dequantizer import dequantize
from golden.feedback import feedback_from_hessian
from golden.planes import Planes
from golden.quantizer import FEEDBACK_RATIOS, quantize
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import cache_bytes

TINY = load_config("tiny")


def some_feedback(seed: int):
    x = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(seed))
    return feedback_from_hessian(x @ x.mT, 0.05)


CONDITIONING = Conditioning(
    True,
    torch.arange(-4000, 4000, 500).reshape(2, 8),
    -12,
    -12,
    some_feedback(1),
    some_feedback(2),
)
CODES = [
    "balanced:2/1,sinks=3,window=6",
    "balanced:2/1,sinks=3,window=6,feedback",
    "balanced:1/2,window=5",
    "balanced:1/2,sinks=2,feedback",
    "residual:2/3,sinks=1,window=9",
    "balanced:2/1,sinks=2,window=7,tier=4,feedback",
]


def layer_for(code: str, backend=None) -> TernaryCacheLayer:
    return TernaryCacheLayer(TINY, CacheCode.parse(code), CONDITIONING, backend or GoldenBackend())


def states(batch: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(
        2, batch, 2, tokens, 8, generator=torch.Generator().manual_seed(seed)
    )
    return keys, values


def expected_planes(code: CacheCode, x: torch.Tensor, which: str) -> list[Planes]:
    """Planes of each token of integers [1, kv_heads, T, D], one by one, by the rules."""
    digits = code.key_digits if which == "key" else code.value_digits
    feedback = ratio = None
    if code.feedback:
        feedback = CONDITIONING.key_feedback if which == "key" else CONDITIONING.value_feedback
        ratio = FEEDBACK_RATIOS[which][digits - 1]
    tokens, result = x.shape[-2], []
    for token in range(tokens):
        vector = x[..., token : token + 1, :]
        high = quantize(TINY, vector, "balanced", code.tier, "absmean")
        if token < code.tiers.sinks or token >= tokens - code.tiers.window:
            result.append(high)
            continue
        source = dequantize(TINY, high) if code.tiers.window else vector
        choice = code.scale_choice
        result.append(
            quantize(TINY, source, code.kind, digits, choice, ratio=ratio, feedback=feedback)
        )
    return result


def assert_holds(layer: TernaryCacheLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
    conditioned = CONDITIONING.condition_keys(keys)[0], CONDITIONING.condition_values(values)[0]
    for which, x, found in zip(
        ("key", "value"), conditioned, (layer.keys.planes(), layer.values.planes()), strict=True
    ):
        expected = Planes.join(expected_planes(layer.code, x, which))
        for field in ("digits", "unit", "fraction", "exponent"):
            assert torch.equal(getattr(found, field), getattr(expected, field)), (which, field)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("pieces", [[30], [1] * 30, [2, 13, 1, 1, 13], [7, 3, 20]])
def test_tiers_do_not_depend_on_the_pieces_tokens_come_in(code, pieces):
    keys, values = states(1, 30)
    layer, start = layer_for(code), 0
    for length in pieces:
        part = slice(start, start + length)
        settled = layer.keys.view().settled if start else 0
        before = dequantize(TINY, layer.keys.planes())[:, :, :settled] if start else None
        layer.update(keys[:, :, part], values[:, :, part])
        start += length
        assert_holds(layer, keys[:, :, :start], values[:, :, :start])
        after = dequantize(TINY, layer.keys.planes())[:, :, :settled]
        assert before is None or torch.equal(after, before)  # what has settled stays
    tail = layer.values.planes(11)
    assert torch.equal(dequantize(TINY, tail), dequantize(TINY, layer.values.planes())[:, :, 11:])
    assert layer.stored_bytes() == 2 * cache_bytes(TINY, layer.code, 30)
    assert layer.keys.view().depths()[0, 0].tolist() == [
        layer.code.tier
        if t < layer.code.tiers.sinks or t >= 30 - layer.code.tiers.window
        else layer.code.key_digits
        for t in range(30)
    ]


@pytest.mark.parametrize("backend", [GoldenBackend(), FloatBackend()], ids=["golden", "float"])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("pieces", [[30], [5, 1, 24], [1, 9, 9, 11]])
def test_every_query_of_a_chunk_sees_the_tiers_of_its_own_time(backend, code, pieces):
    """Equal in every bit to the attention of tokens that come one by one."""
    keys, values = states(2, 30)
    query = 3 * torch.randn(2, 4, 30, 8, generator=torch.Generator().manual_seed(7))
    module = torch.nn.Module()
    module.layer_idx = 0
    results = []
    for split in (pieces, [1] * 30):
        layer, start, outputs = layer_for(code, backend), 0, []
        for length in split:
            part = slice(start, start + length)
            passes = layer.update(keys[:, :, part], values[:, :, part])
            outputs.append(ternary_attention(module, query[:, :, part], *passes, None)[0])
            start += length
        results.append(torch.cat(outputs, 1))
    if isinstance(backend, GoldenBackend):
        assert torch.equal(*results)
    else:  # sums of floats in another order
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("pieces", [[30], [1] * 30, [2, 13, 1, 1, 13]])
def test_value_exponent_is_the_largest_that_was_ever_written(code, pieces):
    """Every version of every token counts, from the step on in which it is written."""
    keys, values = states(1, 30, seed=3)
    values *= torch.logspace(-3, 0, 30)[:, None]  # the newest rule, most of the time
    values[:, :, 8:12] *= 100
    expected = running_value_exponents(CacheCode.parse(code), values)
    layer, start = layer_for(code), 0
    for length in pieces:
        part = slice(start, start + length)
        stored, _ = layer.update(keys[:, :, part], values[:, :, part])
        start += length
        visible = torch.ones(length, start, dtype=torch.bool).tril(start - length)[None, None]
        assert torch.equal(stored.value_exponent(), expected[..., part])
        assert torch.equal(stored.value_exponent(visible), expected[..., part])
        if start % 2:  # what has been settled, and what has not, gives the same
            stored.settle(visible)
    removed = min(4, pieces[-1])
    layer.crop(-removed)
    part = slice(30 - removed, 30)
    stored, _ = layer.update(keys[:, :, part], values[:, :, part])
    assert torch.equal(stored.value_exponent(), expected[..., part])
    layer.reset()
    stored, _ = layer.update(keys[:, :, :1], values[:, :, :1])
    assert torch.equal(stored.value_exponent(), expected[..., :1])


def running_value_exponents(code: CacheCode, values: torch.Tensor) -> torch.Tensor:
    """Largest exponent written until each token came, int64 [1, kv_heads, T], by the rules."""
    x = CONDITIONING.condition_values(values)[0]
    largest, result = torch.zeros(1, 2, dtype=torch.int64), []
    for token in range(x.shape[-2]):
        for version in expected_planes(code, x[..., : token + 1, :], "value"):
            exponents = torch.where(version.unit, version.exponent, 0).amax((-1, -2))
            largest = torch.maximum(largest, exponents)
        result.append(largest)
    return torch.stack(result, -1)


def test_an_overwritten_scale_counts_for_the_value_exponent():
    """Requantizing may lower a scale's exponent: rarely, where it just rounded up before."""
    keys, values = states(2000, 2)
    values[:, :, 1] /= 4096  # the newest token's own scale does not matter
    layer = layer_for("balanced:2/5,window=1")
    stored, _ = layer.update(keys, values)
    x = CONDITIONING.condition_values(values)[0][:, :, :1]
    before = quantize(TINY, x, "balanced", 5, "absmean").exponent[..., 0]
    after = layer.values.planes().exponent[..., 0].amax(-1, keepdim=True)
    assert (before > after).any()
    assert torch.equal(stored.value_exponent()[..., 1:], torch.maximum(before, after))


def test_left_padding_changes_no_bit():
    """A window counts from the end; blocks of the softmax count real tokens."""
    keys, values = states(2, 23)
    query = torch.randn(2, 4, 23, 8, generator=torch.Generator().manual_seed(7))
    module = torch.nn.Module()
    module.layer_idx = 0
    lengths = (23, 14)
    real = torch.arange(23) >= 23 - torch.tensor(lengths)[:, None]
    causal = torch.ones(23, 23, dtype=torch.bool).tril()
    mask = (causal & real[:, None, :])[:, None]
    layer = layer_for("balanced:2/1,window=6,feedback")
    outputs, _ = ternary_attention(module, query, *layer.update(keys, values), mask)
    for row, length in enumerate(lengths):
        part = slice(23 - length, None)
        alone = layer_for("balanced:2/1,window=6,feedback")
        passes = alone.update(keys[row : row + 1, :, part], values[row : row + 1, :, part])
        expected, _ = ternary_attention(module, query[row : row + 1, :, part], *passes, None)
        assert torch.equal(outputs[row, part], expected[0])

    sinks = layer_for("balanced:2/1,sinks=2")
    passes = sinks.update(keys, values)
    with pytest.raises(UserError, match=r"^code: 'balanced:2/1,sinks=2' has sinks, which a batch"):
        ternary_attention(module, query, *passes, mask)


@pytest.mark.parametrize("code", [code for code in CODES if "window" in code])
@pytest.mark.parametrize("pieces", [[20], [14, 6], [3, 2, 15]], ids=str)
def test_cropping_the_newest_update_leaves_what_was_there_before(code, pieces):
    """Tokens that left the window because of what is forgotten are in the tier again."""
    keys, values = states(1, 30)
    for removed in range(1, min(CacheCode.parse(code).tiers.window, pieces[-1]) + 1):
        layer, start = layer_for(code), 0
        for length in pieces:
            part = slice(start, start + length)
            layer.update(keys[:, :, part], values[:, :, part])
            start += length
        before = layer.revision
        for _ in range(removed):
            layer.crop(-1)
        assert layer.revision is not before
        kept = 20 - removed
        assert_holds(layer, keys[:, :, :kept], values[:, :, :kept])
        layer.update(keys[:, :, kept:], values[:, :, kept:])
        assert_holds(layer, keys, values)


def test_cropping_what_cannot_come_back_is_refused_and_changes_nothing():
    keys, values = states(1, 30)
    layer = layer_for(CODES[0])  # three sinks, a window of six
    for token in range(20):
        layer.update(keys[:, :, token, None], values[:, :, token, None])
    message = (
        r"^tokens_to_remove: -3 would bring 3 tokens back into the window of 6, and 1 of them are "
        r"still in its digits; allowed is down to -1, or reset\(\)$"
    )
    with pytest.raises(ValueError, match=message):
        layer.crop(-3)
    assert_holds(layer, keys[:, :, :20], values[:, :, :20])
    layer.crop(-1)
    assert_holds(layer, keys[:, :, :19], values[:, :, :19])
    with pytest.raises(ValueError, match=r"bring 1 tokens back .* 0 of them are still"):
        layer.crop(-1)
    layer.crop(-17)  # only sinks are left: nothing has to be in the window
    assert_holds(layer, keys[:, :, :2], values[:, :, :2])
    layer.update(keys[:, :, 2:], values[:, :, 2:])
    assert_holds(layer, keys, values)


def test_a_pass_shows_what_it_showed_whatever_the_layer_does():
    """Appending, cropping and appending again, rearranging, moving, reset."""
    keys, values = states(2, 40)
    for code in CODES:
        layer = layer_for(code)
        layer.update(keys[:, :, :13], values[:, :, :13])
        stored, _ = layer.update(keys[:, :, 13:18], values[:, :, 13:18])
        shown = [dequantize(TINY, view.planes()) for view in (stored.keys, stored.values)]
        exponents = stored.value_exponent()
        layer.crop(-4)
        layer.update(keys[:, :, 20:29], values[:, :, 20:29])
        layer.reorder_cache(torch.tensor([1, 0]))
        layer.update(keys[:, :, 29:], values[:, :, 29:])
        layer.offload()
        layer.reset()
        for view, expected in zip((stored.keys, stored.values), shown, strict=True):
            assert torch.equal(dequantize(TINY, view.planes()), expected)
        assert torch.equal(stored.value_exponent(), exponents)


@pytest.mark.parametrize("code", ["balanced:2/1,window=6,feedback", "residual:2/3", "balanced:1/2"])
def test_padding_does_not_count_whoever_reads_the_exponents(code):
    """A padded batch: the same value exponents, read in the prefill, twice, later or never."""
    keys, values = states(2, 30)
    values[1, :, :9] *= 100  # padding whose exponents would be the largest
    lengths = torch.tensor([23, 14])
    real = torch.arange(23) >= 23 - lengths[:, None]
    mask = (torch.ones(23, 23, dtype=torch.bool).tril() & real[:, None, :])[:, None]
    module = torch.nn.Module()
    module.layer_idx = 0
    query = torch.randn(2, 4, 30, 8, generator=torch.Generator().manual_seed(7))

    def decoded(prefill, read):
        backend = Switched(prefill)
        layer = layer_for(code, backend)
        passes = layer.update(keys[:, :, :23], values[:, :, :23])
        if read == "before":
            passes[0].value_exponent()
        ternary_attention(module, query[:, :, :23], *passes, mask)
        if read == "after":
            passes[0].value_exponent(mask)
            passes[0].value_exponent()
        backend.backend, outputs = GoldenBackend(), []
        for token in range(23, 30):
            known = torch.nn.functional.pad(real, (0, token - 22), value=True)[:, None, None]
            passes = layer.update(keys[:, :, token, None], values[:, :, token, None])
            outputs.append(ternary_attention(module, query[:, :, token, None], *passes, known)[0])
        return torch.cat(outputs, 1)

    expected = []
    for row, length in enumerate(lengths.tolist()):  # each alone, without padding
        layer, start = layer_for(code), 23 - length
        tokens = [slice(start, 23)] + [slice(t, t + 1) for t in range(23, 30)]
        outputs = [
            ternary_attention(
                module,
                query[row, None, :, part],
                *layer.update(keys[row, None, :, part], values[row, None, :, part]),
                None,
            )[0]
            for part in tokens
        ]
        expected.append(torch.cat(outputs[1:], 1))
    for prefill in (GoldenBackend(), FloatBackend(), SinglePrecisionBackend()):
        for read in ("before", "after", "never"):
            assert torch.equal(decoded(prefill, read), torch.cat(expected)), (prefill, read)


class Switched:
    """A backend that can be exchanged while a cache is in use."""

    def __init__(self, backend) -> None:
        self.backend = backend

    def attend(self, job):
        return self.backend.attend(job)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("balanced:3/2,sinks=4,sinks=5", "has option 'sinks' twice; allowed is once"),
        (
            "balanced:3/2,tail=4",
            "has the unknown option 'tail=4'; allowed are sinks=N, window=N, anchors=N",
        ),
        ("residual:3/2,feedback", "feedback: kind 'residual' has none; must be balanced"),
        ("balanced:3/2,sinks=4,tier=6", "tier: 6 is not allowed; must be 1..5"),
        ("balanced:3/2,tier=0,sinks=4", "tier: 0 is not allowed; must be 1..5"),
        ("balanced:3/2,window=999999", "window: 999999 is not allowed; must be 0..65536"),
        ("balanced:3/2,", "is not a cache code; allowed are balanced:K/V and residual:K/V"),
        ("balanced:3/2,scale=min", "has the unknown option 'scale=min'"),
    ],
)
def test_spellings_that_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        CacheCode.parse(text)
    assert message in str(caught.value)


def test_spelling_is_canonical():
    code = CacheCode.parse("balanced:2/1,feedback,window=32,scale=lsq,sinks=4")
    assert str(code) == "balanced:2/1,sinks=4,window=32,feedback,scale=lsq"
    assert CacheCode.parse(str(code)) == code
    four = CacheCode.parse("balanced:2/1,tier=4,feedback,window=48")
    assert str(four) == "balanced:2/1,window=48,tier=4,feedback"
    assert CacheCode.parse(str(four)) == four
    assert str(CacheCode.parse("balanced:2/1,tier=5,window=48")) == "balanced:2/1,window=48"
    assert CacheCode.parse("balanced:2/1,sinks=0") == CacheCode("balanced", 2, 1)
    assert (code.scale_choice, CacheCode("residual", 2, 1).scale_choice) == ("lsq", "max")
