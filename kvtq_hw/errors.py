"""Errors that a user can cause, and mend."""

__all__ = ["UserError"]


class UserError(Exception):
    """Bad input or a missing tool. The message is one line: what, which value, what is allowed.

    The command line prints the message and exits with status 1; no traceback.
    """
