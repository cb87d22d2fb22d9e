"""Errors that a user can cause and correct, warnings, and the spelling of values in messages."""

from __future__ import annotations

import logging

__all__ = ["LOGGER", "UserError", "shown", "warn"]

#: Logger of all warnings; the command line prints each warning as one line.
LOGGER = logging.getLogger("kvtq_hw")

_LONGEST = 80


class UserError(Exception):
    """Raised for bad input or a missing tool; a message of one line: what, value, what is allowed.

    The command line prints the message and exits with status 1; no traceback.
    """


def warn(message: str) -> None:
    """Log a warning as one line, for a problem that does not stop the work."""
    LOGGER.warning("%s", " ".join(message.split()))


def shown(value: object) -> str:
    """Return the `repr` of a value for a message, cut after 80 characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of over 4300 digits; lists within lists
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
