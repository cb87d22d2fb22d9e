"""A store of a layer's keys, or values, in three parts: sinks, body, window of recent tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golden.cache.plane_store import PlaneStore, PlaneView
from golden.feedback import Feedback
from golden.planes import Planes
from golden.quantizer import FEEDBACK_RATIOS
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.layout import Side

__all__ = ["TieredStore", "TieredView", "Written"]


class TieredView(NamedTuple):
    """The contents of a `TieredStore` at one time; the store never changes what a view shows."""

    sinks: PlaneView
    body: PlaneView
    window: PlaneView

    @property
    def parts(self) -> tuple[PlaneView, PlaneView, PlaneView]:
        """Sinks, body and window: the order of their tokens."""
        return self.sinks, self.body, self.window

    @property
    def tokens(self) -> int:
        """Number of stored tokens."""
        return self.sinks.tokens + self.body.tokens + self.window.tokens

    @property
    def settled(self) -> int:
        """Number of tokens whose planes do not change with later appends: sinks and body."""
        return self.sinks.tokens + self.body.tokens

    def planes(self, start: int = 0) -> Planes:
        """Unpack tokens from `start` on: Planes [batch, kv_heads, tokens, planes, D]."""
        parts, offset = [], 0
        for part in self.parts:
            parts.append(part.planes(min(max(start - offset, 0), part.tokens)))
            offset += part.tokens
        filled = [part for part in parts if part.tokens]
        return Planes.join(filled or [parts[1]])

    def depths(self, start: int = 0) -> Tensor:
        """Return the number of planes of each token from `start` on, int64 [tokens]."""
        digits = torch.tensor([part.digits for part in self.parts])
        counts = torch.tensor([part.tokens for part in self.parts])
        return digits.repeat_interleave(counts)[start:]


@dataclass(frozen=True)
class Written:
    """The scale exponents and the window of one append of T tokens.

    came : uint8 [batch, kv_heads, T], largest scale exponent of each token as first stored
    left : uint8 [batch, kv_heads, T], largest body scale exponent of the token that each token
        pushed out of the window; 0 if none
    window : the window with all T tokens, before any token left; None for one token, which sees
        what is stored afterwards, and for a code without a window
    """

    came: np.ndarray
    left: np.ndarray
    window: PlaneView | None


class TieredStore:
    """Stores a layer's keys, or values, in three parts, chronological: sinks, body, window.

    Sinks (the first tokens) and window (the newest tokens) are in the tier's digits; the body is in
    the short code. A token that leaves the window is requantized from the tier's digits, because
    its original vector is no longer stored. Of the tokens that the newest append pushed out, the
    newest, at most a window's length, are kept in the tier's digits too, so that removing the last
    tokens restores the earlier state exactly. Without a window every token is quantized once.

    Parameters
    ----------
    config, code : format and tiers
    side : "key" or "value", for the number of digits
    feedback : matrices for rounding the body; None rounds each element on its own
    batch, kv_heads, device : leading axes and device of the stored vectors
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

    def __copy__(self) -> TieredStore:
        """Make an independent copy."""
        return copy.deepcopy(self)

    @property
    def tokens(self) -> int:
        """Number of stored tokens."""
        return self.sinks.tokens + self.body.tokens + self.window.tokens

    @property
    def device(self) -> torch.device:
        """Device of the buffers."""
        return self.body.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TieredStore:
        """Move the buffers; return this store, as a cache layer's offloading expects."""
        for part in self._parts:
            part.to(device, non_blocking)
        return self

    def view(self) -> TieredView:
        """Return a view of the stored tokens."""
        return TieredView(self.sinks.view(), self.body.view(), self.window.view())

    def append(self, vectors: Tensor) -> Written:
        """Quantize int64 vectors [batch, kv_heads, tokens, D] and append them."""
        tokens = vectors.shape[-2]
        spread = self._tiers.spread(self.tokens + tokens)
        sinks = spread.sinks - self.sinks.tokens
        written = []
        if sinks:
            written.append(self.sinks.append_vectors(vectors[..., :sinks, :]))
            vectors = vectors[..., sinks:, :]
        rest = self.window if self._tiers.window else self.body
        written.append(rest.append_vectors(vectors))
        came = np.concatenate(written, -1) if sinks else written[0]
        left, before = np.zeros_like(came), None
        if self._tiers.window:
            before = self.window.view() if tokens > 1 else None
            leaving = spread.body - self.body.tokens
            if leaving:
                gone = self.body.append_vectors(self.window.vectors(0, leaving))
                # the newest token pushes out the last leaving token, the one before it the last
                # but one, and so on
                left[..., tokens - leaving :] = gone
                self.window.drop(leaving, keep=self._tiers.window)
        return Written(came, left, before)

    def planes(self, start: int = 0) -> Planes:
        """Unpack tokens from `start` on: Planes [batch, kv_heads, tokens, planes, D]."""
        return self.view().planes(start)

    def check_crop(self, tokens: int) -> None:
        """Raise where keeping only the first `tokens` tokens cannot restore the earlier state.

        Raises
        ------
        ValueError
            When tokens that left the window before the newest append would be in the window again.
        """
        window, back = self._after_crop(tokens)
        if window and back > self.window.behind:
            raise ValueError(
                f"tokens_to_remove: {tokens - self.tokens} would bring {back} tokens back into the "
                f"window of {self._tiers.window}, and {self.window.behind} of them are still in "
                f"its digits; allowed is down to {-self.window.behind}, or reset()"
            )

    def crop(self, tokens: int) -> None:
        """Remove all but the first `tokens` tokens: the store is as it was right after these.

        Raises
        ------
        ValueError
            When `check_crop` raises it.
        """
        self.check_crop(tokens)
        window, back = self._after_crop(tokens)
        if window:
            self.window.take_back(back)
        self.sinks.crop(min(tokens, self.sinks.tokens))
        self.window.crop(window)
        self.body.crop(tokens - self.sinks.tokens - window)

    def map_batch(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply a function that rearranges axis 0 (the batch) to all three parts."""
        for part in self._parts:
            part.map_batch(function)

    def stored_bytes(self) -> int:
        """Return the bytes of the stored tokens; spare room is not counted."""
        return sum(part.stored_bytes() for part in self._parts)

    def stored_elements(self) -> int:
        """Return the number of vector elements that `stored_bytes` represents."""
        return sum(part.stored_elements() for part in self._parts)

    def _after_crop(self, tokens: int) -> tuple[int, int]:
        """Return the window's token count in a context of `tokens` tokens, and the body's surplus.

        The surplus is the number of these window tokens that are in the body now.
        """
        spread = self._tiers.spread(tokens)
        return spread.window, self.body.tokens - spread.body

    @property
    def _parts(self) -> tuple[PlaneStore, PlaneStore, PlaneStore]:
        return self.sinks, self.body, self.window
