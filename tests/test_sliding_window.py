"""Layers with a sliding window in the golden model: what a query sees, in which order; crops."""

from __future__ import annotations

import pytest
import torch

from golden.accelerator import KvHead
from golden.attend.attention import ternary_attention
from golden.attend.backends import FloatBackend, GoldenBackend
from golden.attend.single_precision import SinglePrecisionBackend
from golden.cache.memory_image import MemoryImage
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.causal import causal_mask
from golden.conditioning import Conditioning
from golden.dequantizer import dequantize
from golden.engine import attend
from golden.output_rotator import output_rotator
from golden.planes import Planes
from golden.queries import Queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.layout import MemoryLayout

TINY = load_config("tiny")  # blocks of 4 tokens
TOKENS = 40
CODES = (
    "balanced:2/1,sliding=11",
    "balanced:2/1,window=3,sliding=11",
    "balanced:2/1,sinks=2,window=3,sliding=11",
    "balanced:1/2,sinks=6,window=2,sliding=9",
    "balanced:2/2,sinks=3,sliding=3",  # shorter than a block, no body but the ring
    "balanced:2/1,window=9,sliding=5",  # all of it in the window
    "balanced:2/1,window=1,sliding=2",
    "balanced:2/1,sliding=1",
    "residual:2/1,sinks=1,window=5,sliding=16",
    f"balanced:2/1,sinks=2,window=3,sliding={TOKENS}",  # never left
)


class Module:
    """What the attention function needs of a model's layer."""

    layer_idx = 0


def vectors(count: int, heads: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, count, TINY.head_dim, generator=generator)


KEYS, VALUES = vectors(TOKENS, 2, 1), vectors(TOKENS, 2, 2)
QUERIES = vectors(TOKENS, 2 * TINY.query_group, 3)


def layer(code: str, backend=None) -> TernaryCacheLayer:
    condition = Conditioning(True, torch.arange(-800, 800, 100).reshape(2, 8), -10, -12)
    return TernaryCacheLayer(TINY, CacheCode.parse(code), condition, backend or GoldenBackend())


def outputs(cache: TernaryCacheLayer, start: int, stop: int, seen: int | None = None):
    """Append tokens; attention of their queries, of the last `seen` of them."""
    span = slice(start, stop)
    stored, _ = cache.update(KEYS[:, :, span], VALUES[:, :, span])
    queries = QUERIES[:, :, stop - (seen or stop - start) : stop]
    found, _ = ternary_attention(Module(), queries, stored, stored, None)
    return found


def all_outputs(code: str, pieces: list[int], backend=None) -> torch.Tensor:
    cache, found, start = layer(code, backend), [], 0
    for piece in pieces:
        found.append(outputs(cache, start, start + piece))
        start += piece
    return torch.cat(found, 1)


@pytest.mark.parametrize("pieces", [[40], [1] * 12 + [28], [13, 1, 6, 20], [5, 7, 9, 11, 8]])
@pytest.mark.parametrize("code", CODES)
def test_pieces_give_the_same_bits_as_token_by_token(code, pieces):
    assert torch.equal(all_outputs(code, pieces), all_outputs(code, [1] * TOKENS))


@pytest.mark.parametrize("code", [code for code in CODES if "window=9" not in code])
def test_contexts_up_to_the_window_are_those_of_full_attention(code):
    sliding = CacheCode.parse(code).tiers.sliding
    full = code.rpartition(",sliding")[0]
    steps = [1] * sliding
    assert torch.equal(all_outputs(code, steps), all_outputs(full, steps))
    if sliding < TOKENS:
        more = [*steps, 1]
        assert not torch.equal(all_outputs(code, more), all_outputs(full, more))


@pytest.mark.parametrize("code", CODES)
def test_a_query_sees_the_newest_tokens_only(code):
    """The float reference over all tokens that were ever stored, each in its version then."""
    sliding = CacheCode.parse(code).tiers.sliding
    head = KvHead(TINY, CacheCode.parse(code), Conditioning(True, None, 0, 0))
    cache = layer(code, FloatBackend())
    single = layer(code, SinglePrecisionBackend())
    for token in range(TOKENS):
        head.append(*(x[0, 0, token].mul(4096).round().long() for x in (KEYS, VALUES)))
        stored = head.keys.view()
        assert (stored.tokens, stored.stored) == (token + 1, min(token + 1, sliding))
        exact = outputs(cache, token, token + 1)
        near = outputs(single, token, token + 1)
        seen = slice(max(0, token + 1 - sliding), token + 1)
        plain = reference(seen, token, cache)
        assert (exact - plain).abs().max() < 1e-5
        assert (near - plain).abs().max() < 1e-4


def reference(seen: slice, token: int, cache: TernaryCacheLayer) -> torch.Tensor:
    """Softmax attention over the dequantized planes of the tokens of a slice."""
    count = seen.stop - seen.start
    condition = cache.conditioning
    keys, values = (
        dequantize(TINY, store.planes()).double()[0, :, -count:]
        for store in (cache.keys, cache.values)
    )
    assert keys.shape[1] == count
    queries = QUERIES[:, :, token : token + 1].unflatten(1, (2, TINY.query_group))
    scaled = condition.rotated(condition.scale_queries(queries))[0, :, :, 0]
    weights = torch.softmax(scaled @ keys.mT / TINY.head_dim**0.5, -1)
    out = condition.real_outputs(condition.rotated_back((weights @ values)[None, :, :, None]))
    return out.flatten(1, 2).transpose(1, 2).float()


@pytest.mark.parametrize("code", CODES)
def test_the_order_of_the_memory_is_the_order_of_the_softmax(code):
    """Records as they lie in memory, read slot by slot, give the same bits."""
    parsed = CacheCode.parse(code)
    layout = MemoryLayout(TINY, [parsed], 1, TOKENS)
    head = KvHead(TINY, parsed, Conditioning(True, None, 0, 0))
    image = MemoryImage(layout)
    generator = torch.Generator().manual_seed(4)
    for token in range(TOKENS):
        head.append(*torch.randint(-9000, 9000, (2, TINY.head_dim), generator=generator))
        head.store(image, 0, 0)
        spread = parsed.tiers.spread(token + 1)
        chronological = [image.read(0, 0, side, token + 1) for side in ("key", "value")]
        order = slots_in_order(layout, spread, token + 1)
        keys, values = (reordered(planes, order) for planes in chronological)
        shape = TINY.query_group, 1, TINY.head_dim
        queries = torch.randint(-2000, 2000, shape, generator=generator)
        exponents = torch.full((TINY.query_group,), 20)
        found = head.attend(queries[:, 0], exponents)
        expected = attend_in_order(queries, exponents, keys, values, head.value_exponent)
        assert torch.equal(found.values, expected)


def reordered(planes: Planes, order: torch.Tensor) -> Planes:
    return planes.map_tokens(lambda x, axis: x.index_select(axis, order))


def slots_in_order(layout: MemoryLayout, spread, tokens: int) -> torch.Tensor:
    """The stored tokens by the slots in which the reader finds them, as places in their order."""
    vectors = layout.heads[0][0].key
    held = {}
    for token in range(spread.forgotten, tokens):
        region, slot = vectors.place(token, tokens)
        name = next(name for name, other in vectors.regions.items() if other is region)
        held[name, slot] = token - spread.forgotten
    reads = [("sinks", spread.first_sink + n) for n in range(spread.sinks)]
    reads += [("body", n) for n in range(spread.body)]
    ring = max(vectors.window.slots, 1)
    reads += [("window", (spread.window_start + n) % ring) for n in range(spread.window)]
    return torch.tensor([held[read] for read in reads])


def attend_in_order(queries, exponents, keys: Planes, values: Planes, exponent: int):
    conditioned = query_conditioner(TINY, Queries(queries, exponents[:, None]), True)
    found = attend(TINY, conditioned, keys, values, exponent=torch.tensor([exponent]))
    return output_rotator(TINY, found.values, found.exponent, True)[0]


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [13, 7, 1, 19]])
@pytest.mark.parametrize("code", ["balanced:2/1,sliding=11", "balanced:2/1,window=3,sliding=11"])
def test_a_padded_sequence_sees_its_own_window(code, pieces):
    """The second sequence has 6 tokens fewer, behind padding, and attends as it does alone."""
    pads = 6
    both, alone = layer(code, FloatBackend()), layer(code, FloatBackend())
    real = torch.ones(2, TOKENS, dtype=torch.bool)
    real[1, :pads] = False
    start, found = 0, []
    for piece in pieces:
        stop = start + piece
        first = both.get_mask_sizes(piece)[1]
        states = (torch.cat((x, x), 0)[:, :, start:stop] for x in (KEYS, VALUES))
        stored, _ = both.update(*states)
        seen = causal_mask(piece, stop - first, 11) & real[:, None, first:stop]
        queries = torch.cat((QUERIES, QUERIES), 0)[:, :, start:stop]
        found.append(ternary_attention(Module(), queries, stored, stored, seen[:, None])[0])
        start = stop
    padded = torch.cat(found, 1)
    assert torch.equal(padded[:1], all_outputs(code, pieces, FloatBackend()))
    stored, _ = alone.update(KEYS[:, :, pads:], VALUES[:, :, pads:])
    expected, _ = ternary_attention(Module(), QUERIES[:, :, pads:], stored, stored, None)
    assert (padded[1, pads:] - expected[0]).abs().max() < 1e-5
    assert not padded[1, :pads].any()


@pytest.mark.parametrize("removed", [1, 3, 8])
@pytest.mark.parametrize("code", CODES)
def test_crop_restores_what_the_newest_update_pushed_out(code, removed):
    window = CacheCode.parse(code).tiers.window
    removed = min(removed, window or removed)  # of the window, no more is kept in the tier's digits
    cache = layer(code)
    outputs(cache, 0, 20)
    outputs(cache, 20, 20 + removed)
    cache.crop(-removed)
    assert cache.get_seq_length() == 20
    again = outputs(cache, 20, 40)
    fresh = layer(code)
    outputs(fresh, 0, 20)
    assert torch.equal(again, outputs(fresh, 20, 40))


def test_crop_beyond_the_newest_update_is_refused():
    cache = layer("balanced:2/1,window=3,sliding=11")
    for token in range(20):
        outputs(cache, token, token + 1)
    with pytest.raises(ValueError, match=r"^tokens_to_remove: -2 .* allowed is down to -1, or"):
        cache.crop(-2)
    assert cache.get_seq_length() == 20


def test_stored_bytes_are_those_of_the_window():
    sizes = set()
    cache = layer("balanced:2/1,sliding=11")
    for token in range(TOKENS):
        outputs(cache, token, token + 1)
        sizes.add(cache.stored_bytes())
    assert max(sizes) == 11 * min(sizes)
    assert cache.stored_elements() == 11 * 2 * 2 * TINY.head_dim


def test_masks_are_those_of_the_window():
    cache = layer("balanced:2/1,sliding=5")
    assert cache.is_sliding
    outputs(cache, 0, 9)
    assert cache.get_mask_sizes(3) == (7, 5)
    stored, _ = cache.update(KEYS[:, :, 9:12], VALUES[:, :, 9:12])
    right = torch.ones(3, 7, dtype=torch.bool).tril(4).triu()[None, None]
    found, _ = ternary_attention(Module(), QUERIES[:, :, 9:12], stored, stored, right)
    fresh = layer("balanced:2/1,sliding=5")
    outputs(fresh, 0, 9)
    assert torch.equal(found, outputs(fresh, 9, 12))
    wrong = torch.ones(3, 7, dtype=torch.bool).tril(4)[None, None]
    with pytest.raises(ValueError, match="rows are not the newest 5 tokens"):
        ternary_attention(Module(), QUERIES[:, :, 9:12], stored, stored, wrong)
