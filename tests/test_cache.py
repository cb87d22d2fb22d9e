"""The packed cache: what comes out is what was quantized, whatever was done to the batch."""

from __future__ import annotations

import pytest
import torch

from golden.attend.backends import GoldenBackend
from golden.cache.plane_store import PlaneStore
from golden.cache.ternary_cache import TernaryCache, TernaryCacheLayer
from golden.conditioning import Conditioning
from golden.planes import Planes
from golden.quantizer import quantize
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import bits_per_element, token_bytes

TINY = load_config("tiny")
CODES = [CacheCode("balanced", 3, 2, scale="max"), CacheCode("residual", 4, 3, scale="max")]
CONDITIONING = Conditioning(True, torch.arange(-4000, 4000, 500).reshape(2, 8), -12, -12)


def layer_for(code: CacheCode, config: EngineConfig = TINY) -> TernaryCacheLayer:
    return TernaryCacheLayer(config, code, CONDITIONING, GoldenBackend())


def states(batch: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, batch, 2, tokens, 8, generator=generator)
    return keys, values


def assert_same(found: Planes, expected: Planes) -> None:
    for field in ("digits", "unit", "fraction", "exponent"):
        assert torch.equal(getattr(found, field), getattr(expected, field)), field


def assert_holds(layer: TernaryCacheLayer, keys: torch.Tensor, values: torch.Tensor) -> None:
    """The layer's planes are those of quantizing these tokens in one go."""
    code = layer.code
    conditioned = CONDITIONING.condition_keys(keys)[0], CONDITIONING.condition_values(values)[0]
    digits = (code.key_digits, code.value_digits)
    for x, n, found in zip(
        conditioned, digits, (layer.keys.planes(), layer.values.planes()), strict=True
    ):
        assert_same(found, quantize(layer.config, x, code.kind, n, "max"))


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("packing", ["5in8", "2bit"])
@pytest.mark.parametrize("fraction_bits", [0, 3, 8])
def test_appending_in_pieces_is_quantizing_at_once(code, packing, fraction_bits):
    config = TINY.replace(packing=packing, scale_fraction_bits=fraction_bits)
    keys, values = states(2, 30)
    layer = layer_for(code, config)
    revision = layer.revision
    for start, stop in ((0, 7), (7, 8), (8, 9), (9, 30)):
        assert layer.get_mask_sizes(stop - start) == (stop, 0)
        stored, same = layer.update(
            keys[:, :, start:stop], values[:, :, start:stop], "extra", more=1
        )
        assert stored is same
        assert (stored.tokens, stored.new_tokens) == (stop, stop - start)
        assert layer.get_seq_length() == stop
        assert stored.revision is revision
    assert_holds(layer, keys, values)
    for start in (0, 5, 30):
        tail = layer.keys.planes(start)
        assert tail.tokens == 30 - start
        assert torch.equal(tail.digits, layer.keys.planes().digits[:, :, start:])


@pytest.mark.parametrize("code", CODES, ids=str)
def test_stored_bytes_are_those_of_the_layout(code):
    layer = layer_for(code)
    assert layer.stored_bytes() == layer.stored_elements() == 0
    layer.update(*states(3, 5))
    assert layer.stored_bytes() == 3 * 2 * 5 * token_bytes(TINY, code)
    assert layer.stored_elements() == 3 * 2 * 5 * 2 * 8
    cache = TernaryCache(TINY, code, [CONDITIONING] * 2, GoldenBackend())
    for index in range(2):
        cache.update(*states(1, 7), index)
    assert cache.bits_per_element() == bits_per_element(TINY, code, 7)


def test_elements_beyond_16_bits_saturate_and_are_counted():
    keys, values = states(1, 3)
    keys[0, 0, 1, 2] = 9.0  # 2**15 units are 8
    values[0, 1, 2, 3:5] = -9.0
    layer = layer_for(CODES[0])
    layer.update(keys, values)
    assert layer.saturated == 3
    assert_holds(layer, keys.clamp(-8, 8), values.clamp(-8, 8))


def test_nothing_but_packed_bytes_is_kept():
    layer = layer_for(CODES[0])
    layer.update(*states(1, 3))
    kept = [
        value
        for tensor in (layer.keys, layer.values)
        for store in (tensor.sinks, tensor.body, tensor.window)
        for value in vars(store).values()
        if isinstance(value, torch.Tensor)
    ]
    assert {tensor.dtype for tensor in kept} == {torch.uint8}
    stored, _ = layer.update(*states(1, 1))
    stored.settle(None)
    assert not [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    assert layer._exponents.newest.came.shape == (1, 2, 0)  # nothing of each token


def test_room_to_grow_is_small():
    store = PlaneStore(TINY, "balanced", 1, 1, 1, torch.device("cpu"))
    moves, place = 0, 0
    for step in range(500):
        store.append(quantize(TINY, torch.full((1, 1, 1, 8), step << 4), "balanced", 1, "max"))
        moves += place != store.view().data.data_ptr()
        place = store.view().data.data_ptr()
        assert store.view().data.shape[-2] <= max(4 + store.tokens, store.tokens * 65 / 64)
    assert moves <= 500 // 4  # the more tokens, the rarer
    assert store.stored_bytes() == 500 * (2 + 1)
    assert store.planes(499).exponent.item() == store.planes().exponent[0, 0, 499, 0].item()


@pytest.mark.parametrize("code", CODES, ids=str)
def test_batch_operations(code):
    keys, values = states(3, 6)
    layer = layer_for(code)
    layer.update(keys, values)
    revisions = {layer.revision}

    layer.reorder_cache(torch.tensor([2, 0, 0]))
    keys, values = keys[[2, 0, 0]], values[[2, 0, 0]]
    assert_holds(layer, keys, values)
    layer.batch_repeat_interleave(2)
    keys, values = keys.repeat_interleave(2, 0), values.repeat_interleave(2, 0)
    assert_holds(layer, keys, values)
    layer.batch_select_indices(torch.tensor([5, 1]))
    keys, values = keys[[5, 1]], values[[5, 1]]
    assert_holds(layer, keys, values)
    assert layer.revision not in revisions

    more = states(2, 4, seed=9)
    layer.update(*more)
    keys, values = torch.cat([keys, more[0]], -2), torch.cat([values, more[1]], -2)
    assert_holds(layer, keys, values)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_crop_and_reset(code):
    keys, values = states(1, 10)
    layer = layer_for(code)
    layer.crop(-3)  # nothing stored yet
    layer.update(keys, values)
    revision = layer.revision
    layer.crop(0)
    assert layer.revision is revision
    layer.crop(-4)
    assert layer.revision is not revision
    assert layer.get_seq_length() == 6
    assert_holds(layer, keys[:, :, :6], values[:, :, :6])
    more = states(1, 2, seed=5)
    layer.update(*more)
    assert_holds(
        layer,
        torch.cat([keys[:, :, :6], more[0]], -2),
        torch.cat([values[:, :, :6], more[1]], -2),
    )
    with pytest.raises(ValueError, match=r"^tokens_to_remove: 2 is not allowed; must be zero or"):
        layer.crop(2)
    layer.reset()
    assert layer.get_seq_length() == 0
    assert layer.stored_bytes() == 0
    layer.update(keys, values)
    assert_holds(layer, keys, values)


def test_moving_to_a_device_keeps_everything():
    keys, values = states(1, 10)
    layer = layer_for(CODES[0])
    layer.update(keys, values)
    layer.offload()
    layer.prefetch()
    assert layer.keys.device == torch.device("cpu")
    assert_holds(layer, keys, values)


def test_a_token_beyond_the_maximum_context():
    layer = layer_for(CODES[0])
    assert layer.get_max_length() == 64
    layer.update(*states(1, 64))
    with pytest.raises(UserError, match=r"^context: 65 tokens; configuration 'tiny' allows at mos"):
        layer.update(*states(1, 1))
    assert layer.get_seq_length() == 64


def test_a_head_dimension_that_does_not_fit():
    layer = layer_for(CODES[0])
    with pytest.raises(ValueError, match=r"^keys have head dimension 16, configuration 'tiny' nee"):
        layer.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16))


def test_a_crop_that_one_layer_refuses_changes_no_layer():
    """The first layer has no window and could forget anything; the second has lost digits."""
    codes = tuple(CacheCode.parse(f"balanced:3/2{tiers}") for tiers in ("", ",window=2,tier=5"))
    cache = TernaryCache(TINY, CodeTable("mixed", codes), [CONDITIONING] * 2, GoldenBackend())
    for token in range(10):
        for layer in range(2):
            cache.update(*states(1, 1, seed=token), layer)
    with pytest.raises(ValueError, match="window"):
        cache.crop(-5)
    assert [layer.get_seq_length() for layer in cache.layers] == [10, 10]
