"""Golden unpacker: bytes to trits. `golden.packer` describes the formats."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kvtq_hw.contract.packing import Packing, plane_bytes

__all__ = ["decode_5in8", "decode_table", "unpack"]


def decode_5in8(byte: int) -> tuple[int, int, int, int, int]:
    """Decode one byte to digits t0..t4 in 0..2, step by step as in the Khronos specification.

    Every byte decodes; 13 of the 256 bytes decode to the digits of a smaller byte.
    """

    def bits(value: int, high: int, low: int) -> int:
        return (value >> low) & ((1 << (high - low + 1)) - 1)

    def low_digit(value: int) -> int:  # two bits in which 0b11 also reads as 2
        return bits(value, 1, 1) << 1 | (bits(value, 0, 0) & ~bits(value, 1, 1) & 1)

    if bits(byte, 4, 2) == 0b111:
        c = bits(byte, 7, 5) << 2 | bits(byte, 1, 0)
        t4 = t3 = 2
    else:
        c = bits(byte, 4, 0)
        if bits(byte, 6, 5) == 0b11:
            t4, t3 = 2, bits(byte, 7, 7)
        else:
            t4, t3 = bits(byte, 7, 7), bits(byte, 6, 5)
    if bits(c, 1, 0) == 0b11:
        t2, t1, t0 = 2, bits(c, 4, 4), low_digit(bits(c, 3, 2))
    elif bits(c, 3, 2) == 0b11:
        t2, t1, t0 = 2, 2, bits(c, 1, 0)
    else:
        t2, t1, t0 = bits(c, 4, 4), bits(c, 3, 2), low_digit(bits(c, 1, 0))
    return t0, t1, t2, t3, t4


@cache
def decode_table(packing: Packing) -> Tensor:
    """Return the digit table: the trits of every byte, int8 [256, n], n trits per byte."""
    if packing == "5in8":
        trit_of_digit = (0, 1, -1)
        rows = [[trit_of_digit[digit] for digit in decode_5in8(byte)] for byte in range(256)]
    else:
        trit_of_pair = (0, 1, 0, -1)  # bit 0 nonzero, bit 1 negative; 0b10 reads as zero
        rows = [[trit_of_pair[byte >> shift & 3] for shift in (0, 2, 4, 6)] for byte in range(256)]
    return torch.tensor(rows, dtype=torch.int8)


def unpack(packing: Packing, data: Tensor, head_dim: int) -> Tensor:
    """Unpack bytes uint8 [..., plane_bytes(packing, D)] into trits int8 [..., D].

    Raises
    ------
    ValueError
        When the number of bytes is not that of a plane of `head_dim` trits.
    """
    expected = plane_bytes(packing, head_dim)
    if data.shape[-1] != expected:
        raise ValueError(
            f"data has {data.shape[-1]} bytes per plane, {head_dim} trits in {packing} are "
            f"{expected}"
        )
    table = decode_table(packing).to(data.device)
    # index_select of a flat index takes half the time of indexing with a tensor
    groups = table.index_select(0, data.flatten().int())
    return groups.view(*data.shape[:-1], expected * table.shape[1])[..., :head_dim]
