"""The KV memory as bytes: host software writes them before a job and reads them back after it.

An image holds the bytes from the layout's `base` to its `end`. The golden model writes an image
after a prefill, the hardware token by token; the bytes of all records are the same. Bytes between
and behind records are never written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.cache.tiered_store import TieredView
from golden.planes import Planes
from golden.record_packer import pack_record
from golden.record_unpacker import unpack_records
from kvtq_hw.contract.layout import SIDES, MemoryLayout, Region, Side

__all__ = ["MemoryImage"]


class MemoryImage:
    """The bytes of a memory layout.

    Parameters
    ----------
    layout : addresses of all regions
    data : uint8 [layout.bytes], used without a copy; zeros when None

    Attributes
    ----------
    data : uint8 [layout.bytes]
    """

    def __init__(self, layout: MemoryLayout, data: Tensor | None = None) -> None:
        self.layout = layout
        self.data = torch.zeros(layout.bytes, dtype=torch.uint8) if data is None else data
        if self.data.shape != (layout.bytes,) or self.data.dtype != torch.uint8:
            raise ValueError(
                f"data is {self.data.dtype} {tuple(self.data.shape)}; "
                f"must be torch.uint8 ({layout.bytes},)"
            )

    def store(
        self, layer: int, head: int, side: Side, vectors: TieredView, source: int | None = None
    ) -> None:
        """Write all vectors of one KV head of a cache layer's sequence 0.

        Parameters
        ----------
        layer, head, side : place in the layout
        vectors : the keys, or the values, of the cache layer
        source : index of the KV head in `vectors`; `head` when None
        """
        parts = vectors.of_head(head if source is None else source)
        anchors = vectors.body.tokens - parts["body"].tokens
        for name, planes in parts.items():
            self.write(layer, head, side, name, planes, vectors.tokens, anchors)

    def write(
        self,
        layer: int,
        head: int,
        side: Side,
        tier: str,
        planes: Planes,
        tokens: int,
        anchors: int = 0,
    ) -> None:
        """Write the vectors of one tier, digits [n, P, D], in chronological order.

        Parameters
        ----------
        tier : "sinks", "body" or "window"; anchors follow the sinks
        tokens : number of tokens of the context, which determines the slots of the window's tokens
        anchors : number of anchors of the KV head

        Raises
        ------
        ValueError
            When the number of vectors is not that of the tier in a context of `tokens` tokens.
        """
        region, slots = self._slots(layer, head, side, tier, tokens, anchors)
        if planes.tokens != len(slots):
            raise ValueError(
                f"{planes.tokens} vectors; {tier} of {tokens} tokens must be {len(slots)}"
            )
        if len(slots):
            data = pack_record(self.layout.config, planes, unit_first=side == "value")
            self._records(region)[slots] = data

    def copy_forgotten(self, memory: Tensor, layer: int, head: int, tokens: int) -> None:
        """Copy the sinks that have left the sliding window from a memory, uint8 [layout.bytes].

        Hardware leaves their bytes as they are, and no image of a cache has them.
        """
        spread = self.layout.codes[layer].tiers.spread(tokens)
        for side in SIDES:
            region = self.layout.heads[layer][head].of(side).sinks
            start = region.base - self.layout.base
            gone = slice(start, start + spread.first_sink * region.record_bytes)
            self.data[gone] = memory[gone]

    def read(self, layer: int, head: int, side: Side, tokens: int, anchors: int = 0) -> Planes:
        """Read all vectors of one KV head in a context of `tokens` tokens: digits [n, P, D].

        Sinks, `anchors` anchors, body and window follow each other, each in chronological order.
        """
        parts = []
        for tier in ("sinks", "body", "window"):
            region, slots = self._slots(layer, head, side, tier, tokens, anchors)
            if len(slots):
                data = self._records(region)[slots]
                config = self.layout.config
                parts.append(unpack_records(config, data, region.digits, region.residual, side))
        return Planes.join(parts)

    def _records(self, region: Region) -> Tensor:
        """Return a view of a region's records, uint8 [slots, record bytes]."""
        start = region.base - self.layout.base
        return self.data[start : start + region.bytes].view(region.slots, region.record_bytes)

    def _slots(
        self, layer: int, head: int, side: Side, tier: str, tokens: int, anchors: int
    ) -> tuple[Region, Tensor]:
        """Return a tier's region, and the slots of the tier's tokens in chronological order."""
        if not 1 <= tokens <= self.layout.tokens:
            raise ValueError(f"tokens: {tokens} is not allowed; must be 1..{self.layout.tokens}")
        vectors = self.layout.heads[layer][head].of(side)
        spread = self.layout.codes[layer].tiers.spread(tokens)
        in_window = tokens - spread.window
        first = {
            "sinks": spread.first_sink,
            "body": in_window - spread.body,
            "window": in_window,
        }[tier]
        count = getattr(spread, tier)
        places = [vectors.place(token, tokens)[1] for token in range(first, first + count)]
        if anchors and tier == "sinks":
            places += range(count, count + anchors)
        elif anchors and tier == "body":
            places = places[: count - anchors]
        return vectors.regions[tier], torch.tensor(places, dtype=torch.long)
