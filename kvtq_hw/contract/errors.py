"""Errors that a user can cause, and mend; warnings; and values as messages show them."""

from __future__ import annotations

import logging

__all__ = ["LOGGER", "UserError", "shown", "warn"]

#: Where warnings go; the command line prints each as one line.
LOGGER = logging.getLogger("kvtq_hw")

_LONGEST = 80


class UserError(Exception):
    """Bad input or a missing tool. The message is one line: what, which value, what is allowed.

    The command line prints the message and exits with status 1; no traceback.
    """


def warn(message: str) -> None:
    """Say in one line what went wrong where the work goes on all the same."""
    LOGGER.warning("%s", " ".join(message.split()))


def shown(value: object) -> str:
    """Return a value as a message shows it: its `repr`, cut after 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4300 digits; lists within lists
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
