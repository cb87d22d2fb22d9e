"""Sizes of the packed cache: bytes per vector, token and context, and bits per element.

A vector of N digits is stored as N planes and its scales. Each plane and each scale starts at a
new byte, so that a plane can be fetched alone. A plane packs its trits from the first byte on:

- ``5in8``: five trits per byte, 8/5 = 1.6 bits per digit (the entropy bound is log2 3 = 1.585),
- ``2bit``: four trits per byte.

The last byte of a plane is padded with zeros. A scale is ``fraction | exponent << M`` in the
fewest whole bytes. Nothing else is stored with a token.
"""

from __future__ import annotations

from typing import Literal

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig

__all__ = [
    "DIGITS_PER_BYTE",
    "Packing",
    "bits_per_element",
    "cache_bytes",
    "plane_bytes",
    "scale_bytes",
    "token_bytes",
    "vector_bytes",
]

Packing = Literal["5in8", "2bit"]

DIGITS_PER_BYTE: dict[Packing, int] = {"5in8": 5, "2bit": 4}


def plane_bytes(packing: Packing, head_dim: int) -> int:
    """Return the bytes per plane of `head_dim` trits, padding included."""
    return -(-head_dim // DIGITS_PER_BYTE[packing])


def scale_bytes(config: EngineConfig) -> int:
    """Return the bytes per stored scale, padding included."""
    return -(-config.scale_bits // 8)


def vector_bytes(config: EngineConfig, planes: int, scales: int) -> int:
    """Return the bytes per vector of `planes` planes and `scales` scales."""
    return planes * plane_bytes(config.packing, config.head_dim) + scales * scale_bytes(config)


def token_bytes(config: EngineConfig, code: CacheCode) -> int:
    """Return the bytes per body token and KV head: its key and its value."""
    return sum(
        vector_bytes(config, digits, code.scales(digits))
        for digits in (code.key_digits, code.value_digits)
    )


def cache_bytes(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """Return the bytes of a context of `tokens` tokens of one KV head, tiers included."""
    tier_bytes = 2 * vector_bytes(config, code.tier_digits(config.max_planes), 1)
    return code.tiers.total(tokens, tier_bytes, token_bytes(config, code))


def bits_per_element(config: EngineConfig, code: CacheCode, tokens: int) -> float:
    """Return the stored bits per cached element, over a context of `tokens` tokens.

    Keys and values count together, with scales, padding and tiers. Tokens that have left the
    sliding window are not stored and do not count.
    """
    stored = code.tiers.spread(tokens).tokens
    return cache_bytes(config, code, tokens) * 8 / (2 * config.head_dim * stored)
