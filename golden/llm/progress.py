"""Progress of long work on a model: how much is done, of how much."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["OnProgress", "Work", "unseen"]

OnProgress = Callable[[int, int], None]
"""Takes the amounts of work that are done and that there are in all."""


def unseen(done: int, total: int) -> None:
    """Show progress to nobody."""


class Work:
    """Adds up what is done.

    Parameters
    ----------
    report : called with the work done so far and with `total` after each `advance`
    total : all work, in any unit
    """

    def __init__(self, report: OnProgress, total: int) -> None:
        self._report = report
        self._done, self._total = 0, total

    def advance(self, amount: int) -> None:
        """Report that `amount` more is done."""
        self._done += amount
        self._report(self._done, self._total)
