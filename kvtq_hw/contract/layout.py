"""Layout of the KV memory: regions per layer, KV head and side, and the slots of their records.

A *record* stores one key or value vector, run by run: the run's scale word
(``fraction | exponent << M``, little endian), then the run's planes, packed as in
docs/contract.md. Planes are in the order in which the engine reads them: in each run of a key the
most significant plane first, in each run of a value the unit plane first. A balanced code is one
run; a residual code has one run per plane.

Each side of each KV head of each layer has three regions. The records of a region have one size
and no padding between them. A region starts at a word of the memory port (`memory_bits`).

- **sinks**: the first `sinks` tokens, one slot each, and behind them the anchors in the order in
  which they left the window,
- **window**: the newest tokens, a ring; token t is in slot ``(t - sinks) mod window``,
- **body**: the tokens between sinks and window; token t is in slot ``t - sinks``, less one for
  each anchor before it. In a layer with a
  sliding window of W tokens the body is a ring of ``W - window`` slots: token t is in slot
  ``(t - sinks) mod (W - window)``, and only the newest W tokens are stored.

Records of sinks and window have the tier's digits, records of the body the code's digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.packing import vector_bytes
from kvtq_hw.contract.tiers import Tiers

__all__ = ["SIDES", "HeadLayout", "MemoryLayout", "Region", "Side", "VectorLayout"]

#: One of the two vectors of a token.
Side = Literal["key", "value"]
SIDES: tuple[Side, Side] = ("key", "value")


@dataclass(frozen=True)
class Region:
    """A region of memory: records of one size, one after the other.

    base : byte address of the first record, a multiple of the memory word
    slots : number of records that fit
    digits, residual : planes per record, and whether each plane has its own scale
    record_bytes : bytes per record
    """

    base: int
    slots: int
    digits: int
    residual: bool
    record_bytes: int

    @property
    def bytes(self) -> int:
        """Size in bytes, without the padding behind the last record."""
        return self.slots * self.record_bytes

    def address(self, slot: int) -> int:
        """Return the byte address of a record; raises ValueError outside the region."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot: {slot} is not allowed; must be 0..{self.slots - 1}")
        return self.base + slot * self.record_bytes


@dataclass(frozen=True)
class VectorLayout:
    """The three regions of one side (keys or values) of one KV head, for tokens in `tiers`."""

    tiers: Tiers
    sinks: Region
    body: Region
    window: Region

    @property
    def regions(self) -> dict[str, Region]:
        """The regions by name, in the order of their tokens."""
        return {"sinks": self.sinks, "body": self.body, "window": self.window}

    def place(self, token: int, tokens: int) -> tuple[Region, int]:
        """Return region and slot of a token after `tokens` tokens of which it is stored.

        Raises
        ------
        ValueError
            When the token is not stored then.
        """
        spread = self.tiers.spread(tokens)
        if not spread.forgotten <= token < tokens:
            raise ValueError(
                f"token: {token} is not allowed; must be {spread.forgotten}..{tokens - 1}"
            )
        if token < self.tiers.sinks:
            return self.sinks, token
        if token >= tokens - spread.window:
            return self.window, self.tiers.window_slot(token)
        return self.body, self.tiers.body_slot(token)


@dataclass(frozen=True)
class HeadLayout:
    """The regions of both sides of one KV head."""

    key: VectorLayout
    value: VectorLayout

    def of(self, side: Side) -> VectorLayout:
        """Return the regions of one side."""
        return self.key if side == "key" else self.value


class MemoryLayout:
    """Layout of the KV memory of a model.

    Parameters
    ----------
    config : gives memory word, packing, scale format and head dimension
    codes : cache code per layer
    kv_heads : KV heads per layer
    tokens : longest context that fits
    base : byte address of the first region, a multiple of the memory word

    Attributes
    ----------
    heads : regions by layer and KV head
    end : first byte address behind the last region, which is padded to whole words

    Raises
    ------
    UserError
        When `base` is no multiple of the memory word, the context is longer than `max_context`,
        `kv_heads`, `tokens` or the number of layers is below 1, or the memory does not fit
        `address_bits`.
    """

    def __init__(
        self,
        config: EngineConfig,
        codes: Sequence[CacheCode],
        kv_heads: int,
        tokens: int,
        base: int = 0,
    ) -> None:
        word = config.memory_bits // 8
        for name, number in (("layers", len(codes)), ("kv_heads", kv_heads)):
            if number < 1:
                raise UserError(f"{name}: {number} is not allowed; must be at least 1")
        if not 1 <= tokens <= config.max_context:
            raise UserError(
                f"context: {tokens} is not allowed; must be 1..{config.max_context}, "
                "the configuration's max_context"
            )
        if base < 0 or base % word:
            raise UserError(
                f"base: {base:#x} is not allowed; must be a multiple of the memory word, "
                f"{word} bytes"
            )
        self.config = config
        self.codes = tuple(codes)
        self.tokens = tokens
        self.base = base
        self.end = base
        self.heads = tuple(
            tuple(
                HeadLayout(self._place(code, "key"), self._place(code, "value"))
                for _ in range(kv_heads)
            )
            for code in codes
        )
        if self.end > 1 << config.address_bits:
            raise UserError(
                f"context: {tokens} tokens need addresses up to {self.end:#x}; the configuration "
                f"has address_bits = {config.address_bits}"
            )

    @property
    def bytes(self) -> int:
        """Size of the whole memory in bytes, padding included."""
        return self.end - self.base

    def _place(self, code: CacheCode, side: Side) -> VectorLayout:
        """Allocate the regions of one side of one KV head."""
        sinks, short, window = code.tiers.slots(self.tokens)
        tier = code.tier_digits(self.config.max_planes)
        body = code.key_digits if side == "key" else code.value_digits
        return VectorLayout(
            tiers=code.tiers,
            sinks=self._take(sinks, tier, False),
            body=self._take(short, body, code.kind == "residual"),
            window=self._take(window, tier, False),
        )

    def _take(self, slots: int, digits: int, residual: bool) -> Region:
        size = vector_bytes(self.config, digits, digits if residual else 1)
        region = Region(self.end, slots, digits, residual, size)
        word = self.config.memory_bits // 8
        self.end += -(-region.bytes // word) * word
        return region
