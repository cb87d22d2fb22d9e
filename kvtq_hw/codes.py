"""Cache codes: which ternary code, with how many digits for keys and for values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from kvtq_hw.errors import UserError

__all__ = ["MAX_DIGITS", "SCALE_CHOICES", "CacheCode", "CodeKind", "ScaleChoice"]

CodeKind = Literal["balanced", "residual"]
ScaleChoice = Literal["max", "absmean", "lsq"]

SCALE_CHOICES: tuple[ScaleChoice, ...] = ("max", "absmean", "lsq")
MAX_DIGITS = 5

_SPELLING = re.compile(r"(balanced|residual):([1-9][0-9]*)/([1-9][0-9]*)")


@dataclass(frozen=True)
class CacheCode:
    """A ternary cache code, spelled ``kind:key_digits/value_digits``, for example ``balanced:3/2``.

    A vector of N digits is stored as N planes. ``balanced`` puts them under one scale with weights
    1, 3, ... 3**(N-1); ``residual`` gives every plane its own scale.

    Raises
    ------
    ValueError
        For an unknown kind or a number of digits outside 1..5.
    """

    kind: CodeKind
    key_digits: int
    value_digits: int

    def __post_init__(self) -> None:
        if self.kind not in ("balanced", "residual"):
            raise ValueError(f"kind: {self.kind!r} is unknown; allowed are balanced, residual")
        for name in ("key_digits", "value_digits"):
            digits = getattr(self, name)
            if not 1 <= digits <= MAX_DIGITS:
                raise ValueError(f"{name}: {digits} is not allowed; must be 1..{MAX_DIGITS}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a spelled code.

        Raises
        ------
        UserError
            One line with the text and what is allowed.
        """
        match = _SPELLING.fullmatch(text)
        digits = [int(number) for number in match.groups()[1:]] if match else []
        if match is None or max(digits) > MAX_DIGITS:
            raise UserError(
                f"code: {text!r} is not a cache code; allowed are balanced:K/V and residual:K/V "
                f"with K and V digits from 1 to {MAX_DIGITS}, for example balanced:3/2"
            )
        kind: CodeKind = "balanced" if match[1] == "balanced" else "residual"
        return cls(kind, *digits)

    def __str__(self) -> str:
        return f"{self.kind}:{self.key_digits}/{self.value_digits}"

    def scales(self, digits: int) -> int:
        """Number of scales of a vector of `digits` planes."""
        return 1 if self.kind == "balanced" else digits
