"""Packing of unsigned integers of a few bits into bytes, without unused bits between integers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["pack_bits", "unpack_bits"]


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack integers 0 .. 2**bits - 1 along the last axis, the first integer lowest.

    Parameters
    ----------
    codes : integers [..., n]
    bits : 1..8. The last byte is padded with zeros.

    Returns
    -------
    uint8 [..., ceil(n * bits / 8)]

    Raises
    ------
    ValueError
        When a code does not fit.
    """
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >> bits):
        raise ValueError(
            f"codes: {int(codes.min())}..{int(codes.max())} do not fit {bits} bits; "
            f"allowed are 0..{(1 << bits) - 1}"
        )
    group, group_bytes = _group(bits)
    count = codes.shape[-1]
    padded = torch.nn.functional.pad(codes.long(), (0, -count % group)).unflatten(-1, (-1, group))
    places, octets = (torch.arange(n, device=codes.device) for n in (group, group_bytes))
    words = (padded << bits * places).sum(-1, keepdim=True)
    packed = (words >> 8 * octets) & 0xFF
    return packed.flatten(-2)[..., : -(-count * bits // 8)].to(torch.uint8)


def unpack_bits(data: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the `count` integers that `pack_bits` packed: uint8 [..., count]."""
    group, group_bytes = _group(bits)
    padded = torch.nn.functional.pad(data, (0, -data.shape[-1] % group_bytes))
    places, octets = (torch.arange(n, device=data.device) for n in (group, group_bytes))
    words = padded.unflatten(-1, (-1, group_bytes)).long() << 8 * octets
    codes = (words.sum(-1, keepdim=True) >> bits * places) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8)


def _group(bits: int) -> tuple[int, int]:
    """Return the smallest number of codes that fill whole bytes, and the number of bytes."""
    group = 8 // math.gcd(bits, 8)
    return group, group * bits // 8
