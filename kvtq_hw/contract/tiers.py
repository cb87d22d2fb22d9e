"""Tiers: the tokens of a context that are stored in more digits than the rest.

The first tokens of a context are the sinks, the newest tokens are the window; both have the tier's
digits. The tokens between them are the body. A token enters the window when it is appended, and
moves to the body when `window` newer tokens have been appended::

    Tiers(sinks=2, window=3).spread(9)              # Spread(sinks=2, body=4, window=3)
    Tiers(sinks=2, window=3).per_token(9, 5, 1)     # [5, 5, 1, 1, 1, 1, 5, 5, 5]
    Tiers(sinks=2, window=3).total(9, 5, 1)         # 29
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["NO_TIERS", "Spread", "Tiers"]


class Spread(NamedTuple):
    """Tokens of a context in each part; the parts are in the order of their tokens."""

    sinks: int
    body: int
    window: int

    @property
    def window_start(self) -> int:
        """Slot of the window's oldest token in a ring of `window` slots.

        Token t is in slot ``(t - sinks) mod window``. A window that is not full starts at slot 0.
        """
        return self.body % self.window if self.window else 0


@dataclass(frozen=True)
class Tiers:
    """Tiers of a context: its first `sinks` and its newest `window` tokens.

    Sinks are filled first: in a context shorter than both together, the window has the rest.

    Raises
    ------
    ValueError
        For a negative number of tokens.
    """

    sinks: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        for name in ("sinks", "window"):
            count = getattr(self, name)
            if count < 0:
                raise ValueError(f"{name}: {count} is not allowed; must be at least 0")

    def body(self, tokens: int) -> int:
        """Count the tokens in the body of a context of `tokens` tokens."""
        return max(0, tokens - self.sinks - self.window)

    def spread(self, tokens: int) -> Spread:
        """Count the tokens in each part of a context of `tokens` tokens."""
        sinks, body = min(tokens, self.sinks), self.body(tokens)
        return Spread(sinks, body, tokens - sinks - body)

    def per_token(self, tokens: int, tier: int, body: int) -> list[int]:
        """Return a number for each token of a context: `tier` in sinks and window, else `body`."""
        spread = self.spread(tokens)
        return [tier] * spread.sinks + [body] * spread.body + [tier] * spread.window

    def total(self, tokens: int, tier: int, body: int) -> int:
        """Return the sum of `per_token`, computed without a list."""
        short = self.body(tokens)
        return (tokens - short) * tier + short * body


#: All tokens are in the body.
NO_TIERS = Tiers()
