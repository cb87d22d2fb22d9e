"""Tiers: which tokens of a context are stored, in how many digits, and in which slots.

The first tokens of a context are the sinks, the newest tokens are the window; both have the tier's
digits. The tokens between them are the body. A token enters the window when it is appended, and
moves to the body when `window` newer tokens have been appended::

    Tiers(sinks=2, window=3).spread(9)              # sinks=2, body=4, window=3
    Tiers(sinks=2, window=3).per_token(9, 5, 1)     # [5, 5, 1, 1, 1, 1, 5, 5, 5]
    Tiers(sinks=2, window=3).total(9, 5, 1)         # 29

A layer with a sliding window of W tokens attends to the newest W tokens and stores no others. Its
body is a ring then: a token that enters the body takes the slot of the token that has just left the
sliding window::

    Tiers(sinks=2, window=3, sliding=8).spread(9)   # sinks=1, body=4, window=3
    Tiers(sinks=2, window=3, sliding=8).spread(99)  # sinks=0, body=5, window=3

Some tokens that leave the window may stay in the tier's digits: anchors, at most `anchors` per KV
head. Which tokens are anchors depends on the data (docs/contract.md, "Anchor tokens"), so a spread
counts anchors in the body, where they would be if there were no places for anchors. Sums over
tokens (`per_token`, `total`) count as many anchors as calibration aims at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["ANCHOR_SHARE", "NO_TIERS", "Spread", "Tiers"]

#: Share of the tokens that leave the window for which calibration sets the thresholds of anchors.
ANCHOR_SHARE = 0.02


class Spread(NamedTuple):
    """Stored tokens of a context in each part, in the order in which attention reads them.

    sinks, body, window : number of tokens; sinks and body are read from their first slot on
    forgotten : number of tokens that have left the sliding window
    first_sink : slot of the first sink that is stored
    window_start : slot from which the window's ring is read
    window_slot, body_slot : slots of the newest token in the window, and of the token that entered
        the body last; 0 where there is none
    """

    sinks: int
    body: int
    window: int
    forgotten: int
    first_sink: int
    window_start: int
    window_slot: int
    body_slot: int

    @property
    def tokens(self) -> int:
        """Number of stored tokens."""
        return self.sinks + self.body + self.window


@dataclass(frozen=True)
class Tiers:
    """Tiers of a context: its first `sinks` and its newest `window` tokens.

    Sinks are filled first: in a context shorter than both together, the window has the rest. A
    sliding window shortens the window to its own length, and the sinks to what the window leaves.

    Attributes
    ----------
    sliding : tokens to which a query attends, its own included; all tokens when None
    anchors : most anchors of a KV head; 0 without a window or with a sliding window

    Raises
    ------
    ValueError
        For a negative number of tokens, or a sliding window without a token.
    """

    sinks: int = 0
    window: int = 0
    sliding: int | None = None
    anchors: int = 0

    def __post_init__(self) -> None:
        for name in ("sinks", "window", "anchors"):
            count = getattr(self, name)
            if count < 0:
                raise ValueError(f"{name}: {count} is not allowed; must be at least 0")
        if self.sliding is not None:
            if self.sliding < 1:
                raise ValueError(f"sliding: {self.sliding} is not allowed; must be at least 1")
            # a frozen dataclass sets its own fields this way
            object.__setattr__(self, "window", min(self.window, self.sliding))
            object.__setattr__(self, "sinks", min(self.sinks, self.sliding - self.window))
        if self.sliding is not None or self.window == 0:
            object.__setattr__(self, "anchors", 0)

    def sliding_over(self, tokens: int | None) -> Tiers:
        """Return these tiers in a layer with a sliding window of `tokens` tokens, or without."""
        return replace(self, sliding=tokens)

    @property
    def body_slots(self) -> int | None:
        """Slots of the body's ring; None if the body only grows."""
        return None if self.sliding is None else self.sliding - self.window

    def body_slot(self, token: int) -> int:
        """Return the slot in the body of a token, counted from the context's first token."""
        place = token - self.sinks
        return place if self.body_slots is None else place % self.body_slots

    def window_slot(self, token: int) -> int:
        """Return the slot in the window of a token, counted from the context's first token."""
        return (token - self.sinks) % self.window

    def leaving(self, tokens: int) -> bool:
        """Return whether the last of `tokens` tokens pushes another from the window to the body."""
        return 0 < self.window < tokens - self.sinks and self.body_slots != 0

    def body(self, tokens: int) -> int:
        """Count the tokens in the body of a context of `tokens` tokens."""
        between = max(0, tokens - self.sinks - self.window)
        return between if self.body_slots is None else min(between, self.body_slots)

    def spread(self, tokens: int) -> Spread:
        """Count the stored tokens of a context of `tokens` tokens by part; find their slots."""
        forgotten = 0 if self.sliding is None else max(0, tokens - self.sliding)
        sinks = max(0, min(tokens, self.sinks) - forgotten)
        body = self.body(tokens)
        window = tokens - forgotten - sinks - body
        first_in_window = tokens - forgotten - window  # as in a context that forgot nothing
        entered = tokens - 1 - self.window
        return Spread(
            sinks=sinks,
            body=body,
            window=window,
            forgotten=forgotten,
            first_sink=min(forgotten, self.sinks),
            window_start=self.window_slot(first_in_window) if body and window else 0,
            window_slot=self.window_slot(tokens - 1) if window else 0,
            body_slot=self.body_slot(entered) if body else 0,
        )

    def slots(self, tokens: int) -> tuple[int, int, int]:
        """Return the slots of sinks, body and window that contexts of up to `tokens` tokens use.

        The slots of the sinks include those of the anchors.
        """
        sinks, body = min(tokens, self.sinks), self.body(tokens)
        return sinks + min(body, self.anchors), body, min(tokens - sinks, self.window)

    def expected_anchors(self, tokens: int) -> int:
        """Return the anchors of a KV head in a context of `tokens` tokens that calibration aims at.

        The anchors of a text are more or fewer, by the text and by the KV head.
        """
        return min(self.anchors, round(ANCHOR_SHARE * self.body(tokens)))

    def per_token(self, tokens: int, tier: int, body: int) -> list[int]:
        """Return a number for each stored token of a context, in the order of reading.

        The number is `tier` in sinks, window and expected anchors, else `body`.
        """
        spread, anchors = self.spread(tokens), self.expected_anchors(tokens)
        first = [tier] * (spread.sinks + anchors)
        return first + [body] * (spread.body - anchors) + [tier] * spread.window

    def total(self, tokens: int, tier: int, body: int) -> int:
        """Return the sum of `per_token`, computed without a list."""
        spread, anchors = self.spread(tokens), self.expected_anchors(tokens)
        in_tier = spread.sinks + spread.window + anchors
        return in_tier * tier + (spread.body - anchors) * body


#: All tokens are in the body.
NO_TIERS = Tiers()
