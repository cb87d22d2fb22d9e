"""The memory image: bytes by hand, and a cache's whole life written and read back."""

from __future__ import annotations

import pytest
import torch

from golden.attend.backends import GoldenBackend
from golden.cache.memory_image import MemoryImage
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.conditioning import Conditioning
from golden.planes import Planes
from golden.record_unpacker import unpack_records
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.layout import SIDES, MemoryLayout, Side

TINY = load_config("tiny")
CODES = [
    "balanced:3/2",
    "balanced:2/1,sinks=3,window=6",
    "balanced:1/2,sinks=2",
    "residual:2/3,sinks=1,window=5",
]


def image_for(code: str, tokens: int = 30) -> MemoryImage:
    codes = [CacheCode.parse(code)] * 2
    return MemoryImage(MemoryLayout(TINY, codes, kv_heads=2, tokens=tokens, base=0x80))


def some_planes(unit: list[bool]) -> Planes:
    """One vector whose plane p is +1 in element p alone, under scales (p, 16 + p)."""
    count = len(unit)
    opens = torch.tensor([unit])
    number = torch.arange(count)[None]
    trits = torch.eye(count, 8, dtype=torch.int8)[None]
    return Planes(trits, opens, number * opens, (16 + number) * opens)


# Three trits of a byte of 5in8, t0 t1 t2 as digits: digit i of a byte below 27 is in bits 0-1, 2-3
# and 4. A trit +1 in element 0, 1 or 2 alone is the byte 1, 4 or 16. The scale is f | e << 3.
@pytest.mark.parametrize(
    ("code", "side", "unit", "expected"),
    [
        ("balanced:3/3", "key", [True, False, False], [16 << 3, 16, 0, 4, 0, 1, 0]),
        ("balanced:3/3", "value", [True, False, False], [16 << 3, 1, 0, 4, 0, 16, 0]),
        (
            "residual:3/3",
            "key",
            [True, True, True],
            [16 << 3, 1, 0, 1 | 17 << 3, 4, 0, 2 | 18 << 3, 16, 0],
        ),
    ],
)
def test_bytes_of_a_record(code: str, side: Side, unit: list[bool], expected: list[int]) -> None:
    image = image_for(code)
    image.write(1, 1, side, "body", some_planes(unit), 1)
    region = image.layout.heads[1][1].of(side).body
    start = region.base - 0x80
    assert image.data[start : start + len(expected)].tolist() == expected
    assert region.record_bytes == len(expected)
    assert int((image.data != 0).sum()) == sum(byte != 0 for byte in expected)


def test_scale_of_two_bytes() -> None:
    config = TINY.replace(scale_fraction_bits=6)
    layout = MemoryLayout(config, [CacheCode.parse("balanced:1/1")], kv_heads=1, tokens=4)
    image = MemoryImage(layout)
    planes = some_planes([True])
    planes = Planes(planes.digits, planes.unit, torch.tensor([[33]]), torch.tensor([[21]]))
    image.write(0, 0, "key", "body", planes, 1)
    word = 33 | 21 << 6
    assert image.data[:4].tolist() == [word & 255, word >> 8, 1, 0]
    assert image.read(0, 0, "key", 1).exponent.tolist() == [[21]]


@pytest.mark.parametrize("code", CODES)
def test_life_of_a_cache(code: str) -> None:
    """Written anew at every length, over what was there before: always the cache's own planes."""
    conditioning = Conditioning(True, torch.zeros(2, 8, dtype=torch.long), -12, -12, None, None)
    layer = TernaryCacheLayer(TINY, CacheCode.parse(code), conditioning, GoldenBackend())
    image = image_for(code)
    states = torch.randn(2, 1, 2, 30, 8, generator=torch.Generator().manual_seed(4))
    for token in range(30):
        layer.update(*states[:, :, :, token : token + 1])
        for head in range(2):
            for side, store in zip(SIDES, (layer.keys, layer.values), strict=True):
                image.store(1, head, side, store.view())
                found = image.read(1, head, side, token + 1)
                expected = store.planes().map_tokens(lambda x, axis, head=head: x[0, head])
                for field in ("digits", "unit", "fraction", "exponent"):
                    assert torch.equal(getattr(found, field), getattr(expected, field)), field


def test_records_stay_where_they_are() -> None:
    """A token of the body is written once: later images hold the same bytes there."""
    code = CODES[1]
    conditioning = Conditioning(True, torch.zeros(2, 8, dtype=torch.long), -12, -12, None, None)
    layer = TernaryCacheLayer(TINY, CacheCode.parse(code), conditioning, GoldenBackend())
    states = torch.randn(2, 1, 2, 30, 8, generator=torch.Generator().manual_seed(5))
    layer.update(*states[:, :, :, :20])
    early, late = image_for(code), image_for(code)
    early.store(0, 0, "key", layer.keys.view())
    layer.update(*states[:, :, :, 20:])
    late.store(0, 0, "key", layer.keys.view())
    body = early.layout.heads[0][0].key.body
    settled = slice(body.base - 0x80, body.address(11) - 0x80)  # 3 sinks, 11 body, 6 window
    assert int((early.data[settled] != 0).sum()) > 20
    assert torch.equal(early.data[settled], late.data[settled])


def test_refused() -> None:
    image = image_for(CODES[1])
    planes = some_planes([True, False])
    with pytest.raises(ValueError, match=r"^1 vectors; body of 20 tokens must be 11$"):
        image.write(0, 0, "key", "body", planes, 20)
    with pytest.raises(ValueError, match=r"^tokens: 31 is not allowed; must be 1\.\.30$"):
        image.read(0, 0, "key", 31)
    with pytest.raises(ValueError, match=r"^data is torch\.int8 \(4,\); must be torch\.uint8 \("):
        MemoryImage(image.layout, torch.zeros(4, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"^data has 4 bytes per record; must be 5$"):
        unpack_records(TINY, torch.zeros(1, 4, dtype=torch.uint8), 2, False, "key")
