"""Packing round trips, exhaustively, and the layout's sizes."""

from __future__ import annotations

import itertools

import pytest
import torch
from bench_matrix import check_bench, every_packed_config

from golden.packer import encode_table, pack
from golden.unpacker import decode_table, unpack
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import DIGITS_PER_BYTE, bits_per_element, plane_bytes, token_bytes

PACKINGS = ["5in8", "2bit"]


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_group_of_trits_survives(packing):
    group = DIGITS_PER_BYTE[packing]
    trits = torch.tensor(list(itertools.product((-1, 0, 1), repeat=group)), dtype=torch.int8)
    data = pack(packing, trits)
    assert data.shape == (3**group, 1)
    assert torch.equal(unpack(packing, data, group), trits)
    assert len(set(data.flatten().tolist())) == 3**group


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_byte_decodes_to_trits_that_pack_to_the_smallest_such_byte(packing):
    trits = unpack(packing, torch.arange(256, dtype=torch.uint8)[:, None], DIGITS_PER_BYTE[packing])
    assert set(trits.unique().tolist()) == {-1, 0, 1}
    repacked = pack(packing, trits)[:, 0].long()
    assert (repacked <= torch.arange(256)).all()
    assert torch.equal(unpack(packing, repacked[:, None].to(torch.uint8), trits.shape[-1]), trits)


def test_5in8_is_the_astc_table():
    """Rows of the trit table in the Khronos conformance tests, digits t0 to t4."""
    digits = {
        2: (2, 0, 0, 0, 0),
        3: (0, 0, 2, 0, 0),
        7: (1, 0, 2, 0, 0),
        27: (2, 1, 2, 0, 0),
        31: (0, 0, 2, 2, 2),
        60: (0, 1, 0, 2, 2),
        63: (1, 0, 2, 2, 2),
        78: (2, 2, 2, 2, 0),
        92: (0, 2, 0, 2, 2),
        96: (0, 0, 0, 0, 2),
        124: (0, 2, 2, 2, 2),
        128: (0, 0, 0, 0, 1),
        156: (0, 0, 1, 2, 2),
        223: (2, 1, 2, 2, 2),
        255: (2, 1, 2, 2, 2),
    }
    table = decode_table("5in8")
    for byte, expected in digits.items():
        assert tuple(table[byte].tolist()) == tuple((0, 1, -1)[digit] for digit in expected), byte


def test_a_byte_of_zeros_is_zeros():
    for packing in PACKINGS:
        assert not decode_table(packing)[0].any()
        assert encode_table(packing)[(3 ** DIGITS_PER_BYTE[packing] - 1) // 2] == 0


def test_2bit_reads_its_unused_pattern_as_zero():
    assert decode_table("2bit")[0b10_11_01_10].tolist() == [0, 1, -1, 0]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("head_dim", [4, 8, 60, 64, 128])
def test_planes_of_any_size_survive(packing, head_dim):
    generator = torch.Generator().manual_seed(head_dim)
    trits = torch.randint(-1, 2, (2, 3, 5, head_dim), generator=generator, dtype=torch.int8)
    data = pack(packing, trits)
    assert data.shape == (2, 3, 5, plane_bytes(packing, head_dim))
    assert data.dtype == torch.uint8
    assert torch.equal(unpack(packing, data, head_dim), trits)


def test_pack_refuses_what_is_not_a_trit():
    with pytest.raises(ValueError, match=r"^trits: -2 is not a trit; allowed are -1, 0, 1$"):
        pack("5in8", torch.tensor([1, -2, 0], dtype=torch.int8))


def test_unpack_refuses_a_wrong_number_of_bytes():
    with pytest.raises(ValueError, match=r"^data has 12 bytes per plane, 64 trits in 5in8 are 13$"):
        unpack("5in8", torch.zeros(12, dtype=torch.uint8), 64)


def test_true_bits_of_the_default_code():
    config = load_config("smollm2")
    # K: 3 planes of 13 bytes and one scale byte; V: 2 planes and one scale byte
    assert token_bytes(config, CacheCode("balanced", 3, 2)) == 3 * 13 + 1 + 2 * 13 + 1
    assert bits_per_element(config, CacheCode("balanced", 3, 2), 100) == 67 * 8 / 128
    tiers = CacheCode.parse("balanced:3/2,sinks=4,window=32")
    assert bits_per_element(config, tiers, 100) == (36 * 132 + 64 * 67) * 8 / 12800
    assert bits_per_element(config, tiers, 10) == 132 * 8 / 128
    assert token_bytes(config, CacheCode("residual", 4, 3)) == 7 * 13 + 7
    wide_scale = config.replace(scale_fraction_bits=8, packing="2bit")
    assert token_bytes(wide_scale, CacheCode("balanced", 1, 1)) == 2 * (16 + 2)


@pytest.mark.parametrize("text", ["balanced", "balanced:3", "ternary:3/2", "balanced:0/2", ""])
@pytest.mark.parametrize("suffix", ["", " "])
def test_codes_that_cannot_be_read(text, suffix):
    with pytest.raises(UserError) as caught:
        CacheCode.parse(text + suffix)
    message = str(caught.value)
    assert repr(text + suffix) in message
    assert "allowed are balanced:K/V and residual:K/V with K and V digits from 1 to 5" in message


def test_codes_with_too_many_digits():
    with pytest.raises(UserError, match="'balanced:6/2' is not a cache code"):
        CacheCode.parse("balanced:6/2")
    with pytest.raises(ValueError, match=r"^value_digits: 6 is not allowed; must be 1\.\.5$"):
        CacheCode("balanced", 3, 6)


@pytest.mark.parametrize("text", ["balanced:3/2", "residual:4/3", "balanced:1/5"])
def test_codes_are_spelled_as_they_are_read(text):
    assert str(CacheCode.parse(text)) == text


@every_packed_config
def test_bench(config: EngineConfig, simulator: str) -> None:
    check_bench("packer", config, simulator)
