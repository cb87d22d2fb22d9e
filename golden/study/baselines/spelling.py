"""Spelling of baselines: ``name`` or ``name:argument``, then settings separated by commas."""

from __future__ import annotations

import re
from collections.abc import Collection

from kvtq_hw.contract.errors import UserError

__all__ = ["Settings", "divides", "integer", "split"]

_WHOLE = re.compile(r"[0-9]{1,6}")

Settings = dict[str, str | None]
"""Values of settings ``key=value``; None for those without a value."""


def split(text: str, allowed: Collection[str]) -> tuple[str, Settings]:
    """Split a text into the part before the first comma and the settings behind it.

    Parameters
    ----------
    allowed : allowed settings; ``key=`` takes a value, ``key`` does not

    Raises
    ------
    UserError
        For a setting that is unknown, is repeated, or has a value but takes none.
    """
    head, *rest = text.split(",")
    settings: Settings = {}
    for setting in rest:
        key, equals, value = setting.partition("=")
        if key + equals not in allowed or key in settings:
            listed = ", ".join(sorted(allowed)) or "none"
            raise UserError(
                f"code: {text!r}: setting {setting!r} is not allowed; allowed are, once each: "
                f"{listed}"
            )
        settings[key] = value if equals else None
    return head, settings


def integer(text: str, settings: Settings, key: str, default: int, least: int) -> int:
    """Return a setting's integer, at least `least`.

    Raises
    ------
    UserError
        When the setting is no integer or is below `least`.
    """
    value = settings.get(key)
    if value is None:
        return default
    if not _WHOLE.fullmatch(value) or int(value) < least:
        raise UserError(
            f"code: {text!r}: {key}={value} is not allowed; must be a whole number from {least} on"
        )
    return int(value)


def divides(text: str, group: int | None, head_dim: int) -> None:
    """Check that groups fill a head vector.

    Raises
    ------
    UserError
        When the head dimension is not a multiple of the group.
    """
    if group is not None and head_dim % group:
        raise UserError(
            f"code: {text!r}: group={group} does not divide the model's head dimension {head_dim}"
        )
