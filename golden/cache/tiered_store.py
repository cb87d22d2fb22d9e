"""A store of a layer's keys, or values, in three parts: sinks, body, window of recent tokens.

In a layer with a sliding window, tokens that have left the sliding window are removed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.cache.plane_store import PlaneStore, PlaneView
from golden.cache.stream_order import body_places, window_places
from golden.feedback import Feedback
from golden.planes import Planes
from golden.quantizer import FEEDBACK_RATIOS
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side
from kvtq_hw.contract.packing import vector_bytes
from kvtq_hw.contract.tiers import Tiers

__all__ = ["TieredStore", "TieredView", "Written"]


class TieredView(NamedTuple):
    """The contents of a `TieredStore` at one time; the store never changes what a view shows.

    Each part has its tokens in the order of their arrival, whatever their slots in memory. `body`
    has all tokens between sinks and window; those that are anchors are read from `tier` instead.

    Attributes
    ----------
    forgotten : number of tokens of the context before the first token of the view
    tier : the tokens of `body` in the tier's digits, and `anchored`, bool [batch, kv_heads, n],
        which of the first n are anchors; None without places for anchors
    """

    sinks: PlaneView
    body: PlaneView
    window: PlaneView
    forgotten: int = 0
    tier: PlaneView | None = None
    anchored: Tensor | None = None

    @property
    def parts(self) -> tuple[PlaneView, PlaneView, PlaneView]:
        """Sinks, body and window: the order of their tokens."""
        return self.sinks, self.body, self.window

    @property
    def stored(self) -> int:
        """Number of tokens in the view."""
        return self.sinks.tokens + self.body.tokens + self.window.tokens

    @property
    def tokens(self) -> int:
        """Number of tokens of the context."""
        return self.forgotten + self.stored

    @property
    def settled(self) -> int:
        """Number of stored tokens whose planes do not change with later appends: sinks and body."""
        return self.sinks.tokens + self.body.tokens

    @property
    def in_tier(self) -> Tensor | None:
        """Which tokens of `body` are anchors, bool [batch, kv_heads, tokens]; None if none are."""
        if self.anchored is None or not self.anchored.any():
            return None
        undecided = self.body.tokens - self.anchored.shape[-1]
        return torch.nn.functional.pad(self.anchored, (0, undecided))

    def newest(self, tokens: int) -> TieredView:
        """Return the view of the newest `tokens` tokens, or of all if there are fewer.

        Only a layer with a sliding window, which has no anchors, can lack some.
        """
        surplus = max(0, self.stored - tokens)
        if not surplus:
            return self
        parts, left = [], surplus
        for part in self.parts:
            removed = min(left, part.tokens)
            parts.append(part.without_first(removed))
            left -= removed
        return TieredView(parts[0], parts[1], parts[2], self.forgotten + surplus)

    def places(self, tiers: Tiers, context: int) -> Tensor | None:
        """Return the stored tokens' places in the engine's order, int64 [stored].

        With anchors, the places are [batch, kv_heads, stored]. None where tokens keep the order of
        their arrival.

        Parameters
        ----------
        context : number of tokens up to the query that reads them
        """
        if tiers.sliding is None:
            return self._places_with_anchors(tiers, context)
        if self.tokens <= tiers.sliding:
            return None
        token = torch.arange(self.forgotten, self.tokens, device=self.body.data.device)
        behind, recent = token.split((self.settled, self.window.tokens))
        return torch.cat((body_places(tiers, behind, context), window_places(tiers, recent)))

    def _places_with_anchors(self, tiers: Tiers, context: int) -> Tensor | None:
        if self.in_tier is None:
            return None
        left = max(context - tiers.window - tiers.sinks, 0)
        anchored = torch.nn.functional.pad(
            self.in_tier[..., :left], (tiers.sinks, self.stored - tiers.sinks - left)
        )
        before = anchored.cumsum(-1) - anchored.long()  # anchors before each token
        token = torch.arange(self.stored, device=anchored.device)
        later = anchored.sum(-1, keepdim=True) - before
        behind = torch.where(token < tiers.sinks, token, token + later)
        return torch.where(anchored, tiers.sinks + before, behind)

    def order(self, tiers: Tiers) -> Tensor | None:
        """Return the stored tokens in the engine's order, as a query of the newest token reads.

        Returns
        -------
        Indices of stored tokens, int64 [batch, kv_heads, stored]; None where tokens keep the order
        of their arrival
        """
        places = self.places(tiers, self.tokens)
        if places is None:
            return None
        return places.argsort(-1).expand(*self.body.data.shape[:2], -1)

    def in_order(self, tiers: Tiers) -> tuple[Planes, Tensor]:
        """Return the vectors in the engine's order, as a query of the newest token reads them.

        Returns
        -------
        Planes [batch, kv_heads, stored, planes, D], and the number of planes of each token, int64
        [batch, kv_heads, stored]
        """
        planes, depths = self.planes(), self.depths()
        order = self.order(tiers)
        if order is None:
            return planes, depths

        def ordered(x: Tensor, axis: int) -> Tensor:
            trailing = -axis - 1
            index = order.reshape(*order.shape, *[1] * trailing)
            return x.gather(axis, index.expand(x.shape))

        return planes.map_tokens(ordered), depths.gather(-1, order.cpu())

    def planes(self, start: int = 0) -> Planes:
        """Unpack stored tokens from `start` on: Planes [batch, kv_heads, tokens, planes, D]."""
        parts, offset = [], 0
        for part in self.parts:
            first = min(max(start - offset, 0), part.tokens)
            planes = part.planes(first)
            if part is self.body and self.tier is not None and self.in_tier is not None:
                planes = _chosen(self.in_tier[..., first:], self.tier.planes(first), planes)
            parts.append(planes)
            offset += part.tokens
        filled = [part for part in parts if part.tokens]
        return Planes.join(filled or [parts[1]])

    def depths(self, start: int = 0) -> Tensor:
        """Return the planes of each stored token from `start` on, [batch, kv_heads, tokens]."""
        digits = torch.tensor([part.digits for part in self.parts])
        counts = torch.tensor([part.tokens for part in self.parts])
        depths = digits.repeat_interleave(counts).expand(*self.body.data.shape[:2], -1)
        if self.tier is not None and self.in_tier is not None:
            before, behind = self.sinks.tokens, self.window.tokens
            in_tier = torch.nn.functional.pad(self.in_tier.cpu(), (before, behind))
            depths = torch.where(in_tier, self.tier.digits, depths)
        return depths[..., start:]

    def of_head(self, head: int) -> dict[str, Planes]:
        """Return the vectors of one KV head of sequence 0 by region: Planes [tokens, planes, D].

        Anchors follow the sinks.
        """
        parts = {
            name: getattr(self, name).planes().map_tokens(lambda x, axis: x[0, head])
            for name in ("sinks", "body", "window")
        }
        if self.tier is not None and self.in_tier is not None:
            chosen = self.in_tier[0, head]
            anchors = self.tier.planes().map_tokens(lambda x, axis: x[0, head][chosen])
            parts["sinks"] = Planes.join([parts["sinks"], anchors])
            parts["body"] = parts["body"].map_tokens(lambda x, axis: x[~chosen])
        return parts


@dataclass(frozen=True)
class Written:
    """The scale exponents and the contents of one append of T tokens.

    came : uint8 [batch, kv_heads, T], largest scale exponent of each token as first stored
    left : uint8 [batch, kv_heads, T], largest body scale exponent of the token that each token
        pushed out of the window; 0 if none
    left_in_tier : the same as `left`, if the token that left became an anchor
    window : the window with all T tokens, before any token left; None for one token, which sees
        what is stored afterwards, and for a code without a window
    view : the tokens that any of the T tokens sees, each as it is stored afterwards
    """

    came: np.ndarray
    left: np.ndarray
    left_in_tier: np.ndarray
    window: PlaneView | None
    view: TieredView


class TieredStore:
    """Stores a layer's keys, or values, in three parts, chronological: sinks, body, window.

    Sinks (the first tokens) and window (the newest tokens) are in the tier's digits; the body is in
    the short code. A token that leaves the window is requantized from the tier's digits, because
    its original vector is no longer stored. Of the tokens that the newest append pushed out, the
    newest, at most a window's length, are kept in the tier's digits too, so that removing the last
    tokens restores the earlier state exactly. Without a window every token is quantized once.

    With places for anchors, a token that leaves the window is kept in the tier's digits too, and
    counts in these digits if it is an anchor. Which tokens are is decided by the layer, which sees
    the queries: it sets `anchored`, for the tokens that have left the window.

    With a sliding window of W tokens only the newest W tokens are stored. Those that the newest
    append pushed out of the sliding window are kept until the next append, for the same reason.

    Parameters
    ----------
    config, code : format and tiers
    side : "key" or "value", for the number of digits
    feedback : matrices for rounding the body; None rounds each element on its own
    batch, kv_heads, device : leading axes and device of the stored vectors

    Attributes
    ----------
    anchored : bool [batch, kv_heads, n], which of the first n tokens that left the window are
        anchors; replaced, never changed
    """

    def __init__(
        self,
        config: EngineConfig,
        code: CacheCode,
        side: Side,
        feedback: Feedback | None,
        batch: int,
        kv_heads: int,
        device: torch.device,
    ) -> None:
        self._tiers = code.tiers
        digits = code.key_digits if side == "key" else code.value_digits
        ratio = FEEDBACK_RATIOS[side][digits - 1] if feedback else None
        tier_digits = code.tier_digits(config.max_planes)
        shape = batch, kv_heads, device
        self.sinks = PlaneStore(config, "balanced", tier_digits, *shape, most=code.tiers.sinks)
        self.body = PlaneStore(
            config, code.kind, digits, *shape, code.scale_choice, ratio, feedback
        )
        self.window = PlaneStore(config, "balanced", tier_digits, *shape)
        self._tier = (
            PlaneStore(config, "balanced", tier_digits, *shape) if code.tiers.anchors else None
        )
        self.anchored = torch.zeros((batch, kv_heads, 0), dtype=torch.bool, device=device)
        self._forgotten = 0

    def __copy__(self) -> TieredStore:
        """Make an independent copy."""
        return copy.deepcopy(self)

    @property
    def tokens(self) -> int:
        """Number of tokens of the context, those that have left the sliding window included."""
        return self._forgotten + self.sinks.tokens + self.body.tokens + self.window.tokens

    @property
    def device(self) -> torch.device:
        """Device of the buffers."""
        return self.body.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TieredStore:
        """Move the buffers; return this store, as a cache layer's offloading expects."""
        for part in self._stores:
            part.to(device, non_blocking)
        self.anchored = self.anchored.to(device, non_blocking=non_blocking)
        return self

    def view(self) -> TieredView:
        """Return a view of the stored tokens."""
        parts = self.sinks.view(), self.body.view(), self.window.view()
        if self._tier is None:
            return TieredView(*parts, self._forgotten)
        return TieredView(*parts, self._forgotten, self._tier.view(), self.anchored)

    def append(self, vectors: Tensor) -> Written:
        """Quantize int64 vectors [batch, kv_heads, tokens, D] and append them."""
        tokens = vectors.shape[-2]
        before, total = self.tokens, self.tokens + tokens
        sinks = min(total, self._tiers.sinks) - min(before, self._tiers.sinks)
        written = []
        if sinks:
            written.append(self.sinks.append_vectors(vectors[..., :sinks, :]))
            vectors = vectors[..., sinks:, :]
        rest = self.window if self._tiers.window else self.body
        written.append(rest.append_vectors(vectors))
        came = np.concatenate(written, -1) if sinks else written[0]
        left, window = np.zeros_like(came), None
        left_in_tier = left
        if self._tiers.window and self._tiers.body_slots != 0:
            window = self.window.view() if tokens > 1 else None
            sinks = min(total, self._tiers.sinks)
            leaving = self.window.tokens - min(total - sinks, self._tiers.window)
            if leaving:
                gone = self.body.append_vectors(self.window.vectors(0, leaving))
                # the newest token pushes out the last leaving token, the one before it the last
                # but one, and so on
                left[..., tokens - leaving :] = gone
                if self._tier is not None:
                    left_in_tier = np.zeros_like(left)
                    kept = self._tier.append_vectors(self.window.vectors(0, leaving))
                    left_in_tier[..., tokens - leaving :] = kept
                self.window.drop(leaving, keep=self._tiers.window)
        view = self.view()
        if self._tiers.sliding is not None:
            view = view.newest(tokens + self._tiers.sliding - 1)
            self._forget(total)
        return Written(came, left, left_in_tier, window, view)

    def _forget(self, total: int) -> None:
        """Remove the tokens that have left the sliding window of a context of `total` tokens."""
        spread = self._tiers.spread(total)
        for part, kept in zip(self._parts, (spread.sinks, spread.body, spread.window), strict=True):
            gone = part.tokens - kept
            if gone:
                part.drop(gone, keep=gone)
        self._forgotten = spread.forgotten

    def planes(self, start: int = 0) -> Planes:
        """Unpack tokens from `start` on: Planes [batch, kv_heads, tokens, planes, D]."""
        return self.view().planes(start)

    def check_crop(self, tokens: int) -> None:
        """Raise where keeping only the first `tokens` tokens cannot restore the earlier state.

        Raises
        ------
        ValueError
            When tokens that left the window, or the sliding window, before the newest append would
            be in it again.
        """
        for part, back, place in zip(
            self._parts,
            self._restored(tokens),
            ("sinks", "sliding window", f"window of {self._tiers.window}"),
            strict=True,
        ):
            if back > part.behind:
                raise ValueError(
                    f"tokens_to_remove: {tokens - self.tokens} would bring {back} tokens back into "
                    f"the {place}, and {part.behind} of them are still in its digits; allowed is "
                    f"down to {-self._removable()}, or reset()"
                )

    def crop(self, tokens: int) -> None:
        """Remove all but the first `tokens` tokens: the store is as it was right after these.

        Raises
        ------
        ValueError
            When `check_crop` raises it.
        """
        self.check_crop(tokens)
        spread = self._tiers.spread(tokens)
        kept = spread.sinks, spread.body, spread.window
        for part, back, count in zip(self._parts, self._restored(tokens), kept, strict=True):
            part.take_back(back)
            part.crop(count)
        if self._tier is not None:
            self._tier.crop(spread.body)
            self.anchored = self.anchored[..., : spread.body]
        self._forgotten = spread.forgotten

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to all parts."""
        for part in self._stores:
            part.map_batch(function)
        self.anchored = function(self.anchored)

    def stored_bytes(self) -> int:
        """Return the bytes of the stored tokens; spare room is not counted."""
        total = sum(part.stored_bytes() for part in self._parts)
        if self._tier is None:
            return total
        config, body = self.body.config, self.body.digits
        runs = 1 if self.body.kind == "balanced" else body
        more = vector_bytes(config, self._tier.digits, 1) - vector_bytes(config, body, runs)
        return total + more * int(self.anchored.sum())

    def stored_elements(self) -> int:
        """Return the number of vector elements that `stored_bytes` represents."""
        return sum(part.stored_elements() for part in self._parts)

    def _restored(self, tokens: int) -> tuple[int, int, int]:
        """Return how many dropped tokens each part needs back in a context of `tokens` tokens."""
        now, then = self._tiers.spread(self.tokens), self._tiers.spread(tokens)
        window = (self.tokens - now.window) - (tokens - then.window) if then.window else 0
        # the body's first token, as far as it lies behind the sinks
        first_now, first_then = (max(x.forgotten, self._tiers.sinks) for x in (now, then))
        body = first_now - first_then if then.body else 0
        return now.first_sink - then.first_sink, body, window

    def _removable(self) -> int:
        """Return the largest number of newest tokens that can be removed."""
        removed = 0
        while removed < self.tokens and all(
            back <= part.behind
            for part, back in zip(
                self._parts, self._restored(self.tokens - removed - 1), strict=True
            )
        ):
            removed += 1
        return removed

    @property
    def _stores(self) -> tuple[PlaneStore, ...]:
        return self._parts if self._tier is None else (*self._parts, self._tier)

    @property
    def _parts(self) -> tuple[PlaneStore, PlaneStore, PlaneStore]:
        return self.sinks, self.body, self.window


def _chosen(mask: Tensor, first: Planes, second: Planes) -> Planes:
    """Return vectors of `first` where the mask [batch, kv_heads, tokens] is true, else `second`."""
    joined = Planes.join([first, second])  # with as many planes
    count = mask.shape[-1]

    def choose(x: Tensor, axis: int) -> Tensor:
        one, other = x.narrow(axis, 0, count), x.narrow(axis, count, count)
        return torch.where(mask.reshape(*mask.shape, *[1] * (-axis - 1)), one, other)

    return joined.map_tokens(choose)
