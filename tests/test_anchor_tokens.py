"""Anchor tokens in the golden model: hits, decisions, what a query sees, in which order; crops."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from golden.attend.attention import ternary_attention
from golden.attend.backends import FloatBackend, GoldenBackend, to_float
from golden.attend.single_precision import SinglePrecisionBackend
from golden.cache.memory_image import MemoryImage
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.causal import causal_mask
from golden.conditioning import Conditioning
from golden.dequantizer import dequantize
from golden.engine import Attention, attend
from golden.key_lanes import key_lanes
from golden.output_rotator import output_rotator
from golden.plane_scaler import plane_scaler
from golden.planes import Planes
from golden.quantizer import quantize
from golden.queries import Queries, quantize_queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.layout import MemoryLayout

TINY = load_config("tiny")  # blocks of 4 tokens
TOKENS, HEADS = 60, 2
CODES = (
    "balanced:2/1,sinks=2,window=6,anchors=5",
    "balanced:1/2,window=5,anchors=40,tier=4",
    "residual:2/1,sinks=3,window=7,anchors=2",
    "balanced:2/2,sinks=1,window=2,anchors=60",
)
THRESHOLDS = 250, 330  # of a window of 32 tokens, that is, 31 queries
PIECES = [[60], [1] * 14 + [46], [13, 1, 6, 40], [5, 7, 9, 11, 28], [3, 1, 1, 30, 1, 24]]


class Module:
    """What the attention function needs of a model's layer."""

    layer_idx = 0


def vectors(count: int, heads: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, count, TINY.head_dim, generator=generator)


KEYS, VALUES = vectors(TOKENS, HEADS, 1), vectors(TOKENS, HEADS, 2)
QUERIES = 3 * vectors(TOKENS, HEADS * TINY.query_group, 3)


def layer(code: str, backend=None) -> TernaryCacheLayer:
    centre = torch.arange(-800, 800, 100).reshape(2, 8)
    thresholds = torch.tensor(THRESHOLDS)
    condition = Conditioning(True, centre, -10, -12, anchor_thresholds=thresholds)
    return TernaryCacheLayer(TINY, CacheCode.parse(code), condition, backend or GoldenBackend())


def outputs(cache: TernaryCacheLayer, start: int, stop: int) -> torch.Tensor:
    """Append tokens; attention of their queries."""
    span = slice(start, stop)
    stored, _ = cache.update(KEYS[:, :, span], VALUES[:, :, span])
    found, _ = ternary_attention(Module(), QUERIES[:, :, span], stored, stored, None)
    return found


def run(code: str, pieces: list[int], backend=None) -> tuple[torch.Tensor, TernaryCacheLayer]:
    cache, found, start = layer(code, backend), [], 0
    for piece in pieces:
        found.append(outputs(cache, start, start + piece))
        start += piece
    return torch.cat(found, 1), cache


def image(cache: TernaryCacheLayer) -> MemoryImage:
    made = MemoryImage(MemoryLayout(TINY, [cache.code], HEADS, TOKENS))
    for head in range(HEADS):
        made.store(0, head, "key", cache.keys.view())
        made.store(0, head, "value", cache.values.view())
    return made


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("code", CODES)
def test_any_pieces_give_what_token_by_token_gives(code, pieces):
    expected, one_by_one = run(code, [1] * TOKENS)
    found, cache = run(code, pieces)
    assert torch.equal(cache.keys.anchored, one_by_one.keys.anchored)
    assert cache.keys.anchored.any() and not cache.keys.anchored.all()
    assert torch.equal(found, expected)
    assert torch.equal(image(cache).data, image(one_by_one).data)
    assert cache.stored_bytes() == one_by_one.stored_bytes()


def record(code: CacheCode, vector: torch.Tensor, digits: int, kind: str = "balanced") -> Planes:
    """A vector [D] quantized on its own: Planes [1, P, D]."""
    scale = code.scale_choice if digits != code.tier else "absmean"
    return quantize(TINY, vector[None], kind, digits, scale)


@pytest.mark.parametrize("code", CODES)
def test_the_contract_step_by_step(code):
    """A KV head by the text of the contract, with lists; every output bit is compared."""
    found, cache = run(code, [20, 1, 1, 38])
    parsed = CacheCode.parse(code)
    tiers, digits, condition = parsed.tiers, parsed.tier, cache.conditioning
    thresholds = [math.ceil(hits * (tiers.window - 1) / 31) for hits in THRESHOLDS]
    keys, values = condition.condition_keys(KEYS)[0], condition.condition_values(VALUES)[0]
    for head in range(HEADS):
        sinks, anchors, body, window = [], [], [], []
        hits: dict[int, int] = {}
        largest = 0
        chosen = []
        for token in range(TOKENS):
            new = [record(parsed, x[0, head, token], digits) for x in (keys, values)]
            largest = max(largest, int(new[1].exponent.max()))
            if len(sinks) < tiers.sinks:
                sinks.append(new)
            else:
                if len(window) == tiers.window:
                    leaving, planes = window.pop(0)
                    integers = [integer(x) for x in planes]
                    anchor = hits[leaving] >= thresholds[head] and len(anchors) < tiers.anchors
                    counts = [digits] * 2 if anchor else [parsed.key_digits, parsed.value_digits]
                    kind = "balanced" if anchor else parsed.kind
                    moved = [
                        record(parsed, x, n, kind) for x, n in zip(integers, counts, strict=True)
                    ]
                    largest = max(largest, int(moved[1].exponent.max()))
                    (anchors if anchor else body).append(moved)
                    chosen.append(anchor)
                window.append((token, new))
                hits[token] = 0
            stream = [*sinks, *anchors, *body, *(planes for _, planes in window)]
            stream_keys, stream_values = (Planes.join([x[n] for x in stream]) for n in (0, 1))
            group = QUERIES[0, head * TINY.query_group : (head + 1) * TINY.query_group, token]
            scaled = condition.scale_queries(group[None, None, :, None])
            lanes = query_conditioner(TINY, quantize_queries(TINY, scaled), True)
            queries = Queries(lanes.values[0, 0], lanes.exponent[0, 0])
            expected = attend(
                TINY, queries, stream_keys, stream_values, exponent=torch.tensor([largest])
            )
            turned, exponent = output_rotator(TINY, expected.values, expected.exponent, True)
            turned = Attention(turned, exponent, expected.saturated)
            real = condition.real_outputs(to_float(turned))
            ours = found[0, token, head * TINY.query_group : (head + 1) * TINY.query_group]
            assert torch.equal(real[:, 0].to(ours.dtype), ours), token
            sums = key_lanes(stream_keys.digits, queries.values)
            scores, _ = plane_scaler(TINY, sums, stream_keys, queries.exponent)
            places = [place for place, _ in window]
            for of_member in scores[:, 0].tolist():
                for place, more in hits_of(of_member, len(sinks), places).items():
                    hits[place] += more if place != token else 0
        assert chosen == cache.keys.anchored[0, head].tolist()


def hits_of(scores: list[int], sinks: int, window: list[int]) -> dict[int, int]:
    """Hits that a query head gives to the tokens of the window, by the text of the contract."""
    octave = 1 << TINY.score_fraction_bits
    recent = zip(window, scores[len(scores) - len(window) :], strict=True)
    hits, reference = {}, None
    for place, score in [*((None, score) for score in scores[:sinks]), *recent]:
        if reference is None:
            reference = score
        else:
            n = math.floor(2 * abs(score - reference) / octave)
            step = octave * math.log2(1 + 2 ** (-(n + 0.5) / 2)) if n < 16 else 0
            reference = max(reference, score) + math.floor(step + 0.5)
        n = math.floor(2 * (reference - score) / octave)
        if place is not None and n < 10:
            hits[place] = math.floor(16 * 2 ** (-(n + 0.5) / 2) + 0.5)
    return hits


def integer(planes: Planes) -> torch.Tensor:
    """The integers of a vector of one run, int64 [D]."""
    merged = planes.merged()
    scale = ((1 << TINY.scale_fraction_bits) + merged.fraction[0, 0]) << merged.exponent[0, 0]
    return merged.digits[0, 0].long() * scale


@pytest.mark.parametrize("backend", [FloatBackend, SinglePrecisionBackend])
def test_real_numbers_see_the_same_vectors(backend):
    """In float the order is of no account: the planes of all tokens, as the newest query sees."""
    found, cache = run(CODES[0], [1] * TOKENS, backend())
    _, integers = run(CODES[0], [TOKENS])
    assert torch.equal(cache.keys.anchored, integers.keys.anchored)
    condition = cache.conditioning
    keys, values = (
        dequantize(TINY, store.view().planes()).double() for store in (cache.keys, cache.values)
    )
    group = QUERIES[:, :, -1:].unflatten(1, (HEADS, TINY.query_group))
    scores = condition.condition_queries(group) @ keys[:, :, None].mT / TINY.head_dim**0.5
    expected = condition.restore_outputs(scores.softmax(-1) @ values[:, :, None])
    assert torch.allclose(found[:, -1].double(), expected.flatten(1, 2)[:, :, 0], atol=1e-5)
    pieces, _ = run(CODES[0], [13, 1, 6, 40], backend())
    assert torch.allclose(found, pieces, atol=1e-5)


def test_a_crop_restores_hits_and_decisions():
    _, expected = run(CODES[0], [20, 1, 1])
    _, cache = run(CODES[0], [20, 1, 1])
    outputs(cache, 22, 28)
    cache.crop(-6)
    assert torch.equal(image(cache).data, image(expected).data)
    for start, stop in ((22, 23), (23, 60)):
        assert torch.equal(outputs(cache, start, stop), outputs(expected, start, stop))
    assert torch.equal(cache.keys.anchored, expected.keys.anchored)


def test_copies_and_batches_have_their_own_anchors():
    _, cache = run(CODES[0], [30])
    other = copy.deepcopy(cache)
    outputs(cache, 30, 60)
    assert other.get_seq_length() == 30
    found = outputs(other, 30, 60)
    assert torch.equal(found, run(CODES[0], [30, 30])[0][:, 30:])
    other.batch_repeat_interleave(3)
    assert other.keys.anchored.shape[0] == 3
    assert other.stored_bytes() == 3 * cache.stored_bytes()


def test_tokens_without_attention_get_no_hits():
    cache = layer(CODES[0])
    cache.update(KEYS, VALUES)
    cache.update(KEYS[:, :, :1], VALUES[:, :, :1])
    assert cache.keys.anchored.shape[-1] == TOKENS + 1 - 8
    assert not cache.keys.anchored.any()


def test_a_calibration_without_thresholds_is_refused():
    cache = TernaryCacheLayer(
        TINY, CacheCode.parse(CODES[0]), Conditioning(True, None, 0, 0), GoldenBackend()
    )
    with pytest.raises(ValueError, match="the calibration no thresholds"):
        cache.update(KEYS, VALUES)


def test_padded_batches_are_refused():
    cache = layer(CODES[1])
    stored, _ = cache.update(KEYS, VALUES)
    mask = causal_mask(TOKENS, TOKENS)[None, None].clone()
    mask[..., :3] = False
    with pytest.raises(UserError, match=r"has anchors, which a batch with padded .* anchors=0$"):
        ternary_attention(Module(), QUERIES, stored, stored, mask)
