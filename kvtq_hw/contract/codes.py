"""Cache codes: the kind of ternary code, its digits for keys and for values, and its tiers.

::

    >>> code = CacheCode.parse("balanced:3/2,sinks=4,window=32,feedback")
    >>> code.key_digits, code.value_digits, code.tiers
    (3, 2, Tiers(sinks=4, window=32, sliding=None, anchors=0))
    >>> str(code)
    'balanced:3/2,sinks=4,window=32,feedback'
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field

from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.files import Schema, read_toml, validated
from kvtq_hw.contract.tiers import NO_TIERS, Tiers

__all__ = [
    "DEFAULT_CODE",
    "MAX_DIGITS",
    "MAX_LAYERS",
    "SCALE_CHOICES",
    "STANDARD_CODES",
    "CacheCode",
    "CodeKind",
    "CodeTable",
    "ScaleChoice",
    "read_code",
]

CodeKind = Literal["balanced", "residual"]
ScaleChoice = Literal["max", "absmean", "lsq"]

SCALE_CHOICES: tuple[ScaleChoice, ...] = ("max", "absmean", "lsq")
MAX_DIGITS = 5
#: Most layers per model: eight times as many as the largest models have.
MAX_LAYERS = 1024

_DIGIT = f"([1-{MAX_DIGITS}])"
_SPELLING = re.compile(rf"(balanced|residual):{_DIGIT}/{_DIGIT}((?:,[a-z0-9=]+)*)")
_COUNT = re.compile(r"(sinks|window|tier|sliding|anchors)=(0|[1-9][0-9]{0,6})")
_MAX_COUNT = 1 << 16
#: Longest sliding window: the longest context of any engine.
_MAX_SLIDING = 1 << 20


@dataclass(frozen=True)
class CacheCode:
    """A ternary cache code, spelled ``kind:key_digits/value_digits`` and comma-separated options.

    Examples: ``balanced:3/2``, ``balanced:2/1,sinks=4,window=48,tier=4``. A vector of N digits is
    stored as N planes. ``balanced`` puts the planes under one scale with weights 1, 3, ...
    3**(N-1); ``residual`` gives every plane its own scale.

    Attributes
    ----------
    kind, key_digits, value_digits : code of the body (tokens that are neither sinks nor window)
    tiers : numbers of tokens in sinks and window, which have the tier's digits; a token that leaves
        the window is requantized to the body's code; the most anchors of a KV head, spelled
        ``anchors=N``; and the layer's sliding window, spelled ``sliding=W``, if the layer attends
        to its newest W tokens only. Layers with a sliding window have no anchors.
    tier : digits of keys and values in sinks and window, always in the balanced code
    feedback : whether body vectors are rounded with feedback, by the calibration's matrices
    scale : choice of the body's scale; None means absmean for balanced and max for residual codes

    Raises
    ------
    ValueError
        For an unknown kind or scale, a number of digits outside 1..5, more than 65536 sinks, window
        tokens or anchors, a sliding window of more than 1048576 tokens, or feedback in a residual
        code.
    """

    kind: CodeKind
    key_digits: int
    value_digits: int
    tiers: Tiers = NO_TIERS
    tier: int = MAX_DIGITS
    feedback: bool = False
    scale: ScaleChoice | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("balanced", "residual"):
            raise ValueError(f"kind: {self.kind!r} is unknown; allowed are balanced, residual")
        for name in ("key_digits", "value_digits", "tier"):
            digits = getattr(self, name)
            if not 1 <= digits <= MAX_DIGITS:
                raise ValueError(f"{name}: {digits} is not allowed; must be 1..{MAX_DIGITS}")
        for name in ("sinks", "window", "anchors"):
            count = getattr(self.tiers, name)
            if count > _MAX_COUNT:
                raise ValueError(f"{name}: {count} is not allowed; must be 0..{_MAX_COUNT}")
        if (self.tiers.sliding or 0) > _MAX_SLIDING:
            raise ValueError(
                f"sliding: {self.tiers.sliding} is not allowed; must be 1..{_MAX_SLIDING}"
            )
        if self.scale is not None and self.scale not in SCALE_CHOICES:
            raise ValueError(
                f"scale: {self.scale!r} is unknown; allowed are {', '.join(SCALE_CHOICES)}"
            )
        if self.feedback and self.kind != "balanced":
            raise ValueError(f"feedback: kind {self.kind!r} has none; must be balanced")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a spelled code; options may be in any order, each at most once.

        Raises
        ------
        UserError
            One line with the text and what is allowed.
        """
        match = _SPELLING.fullmatch(text)
        if match is None:
            raise UserError(
                f"code: {shown(text)} is not a cache code; allowed are balanced:K/V and "
                f"residual:K/V with K and V digits from 1 to {MAX_DIGITS}, for example balanced:3/2"
            )
        digits = int(match[2]), int(match[3])
        kind: CodeKind = "balanced" if match[1] == "balanced" else "residual"
        options: dict[str, Any] = {}
        for option in match[4].split(",")[1:]:
            name, value = _option(text, option)
            if name in options:
                raise UserError(f"code: {shown(text)} has option {name!r} twice; allowed is once")
            options[name] = value
        try:
            names = ("sinks", "window", "sliding", "anchors")
            if options.get("anchors") and not options.get("window"):
                raise ValueError("anchors: a code without a window has none; must have window=N")
            tiers = Tiers(**{name: options.pop(name) for name in names if name in options})
            return cls(kind, digits[0], digits[1], tiers, **options)
        except ValueError as error:
            raise UserError(f"code: {shown(text)}: {error}") from None

    def __str__(self) -> str:
        parts = [f"{self.kind}:{self.key_digits}/{self.value_digits}"]
        for name in ("sinks", "window", "sliding", "anchors"):
            count = getattr(self.tiers, name)
            parts += [f"{name}={count}"] * bool(count)
        parts += [f"tier={self.tier}"] * (self.tier != MAX_DIGITS)
        parts += ["feedback"] * self.feedback
        parts += [f"scale={self.scale}"] * (self.scale is not None)
        return ",".join(parts)

    @property
    def scale_choice(self) -> ScaleChoice:
        """Choice of the body's scale, with the default of the kind filled in."""
        return self.scale or ("absmean" if self.kind == "balanced" else "max")

    @property
    def most_digits(self) -> int:
        """Most digits of a body vector."""
        return max(self.key_digits, self.value_digits)

    def tier_digits(self, max_planes: int) -> int:
        """Return the digits of sinks and window in an engine with `max_planes` planes."""
        return min(self.tier, max_planes)

    def planes(self, digits: int, tokens: int, max_planes: int) -> list[int]:
        """Return the planes per token of a context; `digits` applies to body tokens."""
        return self.tiers.per_token(tokens, self.tier_digits(max_planes), digits)

    def with_digits(self, key_digits: int, value_digits: int) -> CacheCode:
        """Return this code with other digits in the body."""
        return replace(self, key_digits=key_digits, value_digits=value_digits)

    def of_layers(self, layers: int) -> tuple[CacheCode, ...]:
        """Return the code of each layer: this code `layers` times."""
        return (self,) * layers

    def for_layers(self, windows: Sequence[int | None]) -> tuple[CacheCode, ...]:
        """Return the code of each layer of a model: this code with the layer's sliding window.

        Parameters
        ----------
        windows : sliding window of each layer in tokens; None for a layer that attends to all

        Raises
        ------
        UserError
            When the code itself has another sliding window, or the model a longer one than codes
            can have.
        """
        return _with_windows(self.of_layers(len(windows)), windows)

    def scales(self, digits: int) -> int:
        """Return the number of scales per body vector of `digits` planes."""
        return 1 if self.kind == "balanced" else digits


_ByLayer = Field(min_length=1, max_length=MAX_LAYERS)
_Digits = Annotated[int, Field(ge=1, le=MAX_DIGITS)]
_DigitsByLayer = Annotated[list[_Digits], _ByLayer]
_Sliding = Annotated[int, Field(ge=0, le=_MAX_SLIDING)]


class _TableFile(Schema):
    """Schema of a code table's file."""

    model_config = ConfigDict(extra="forbid")

    code: str
    key_digits: _DigitsByLayer
    value_digits: _DigitsByLayer
    sliding: Annotated[list[_Sliding], _ByLayer] | None = None


@dataclass(frozen=True)
class CodeTable:
    """A code for each layer of a model: kind, tiers and options are shared, digits are per layer.

    A code table is a TOML file with a spelled ``code`` and the lists ``key_digits`` and
    ``value_digits``. The lists have one number per layer and replace the digits of ``code``. One
    more list, ``sliding``, may say the sliding window of each layer, 0 for a layer without; a table
    that has none is for any sliding windows. A table is spelled as the path of its file, which ends
    in ``.toml``; `str` gives the file's name and a digest of the codes.

    Attributes
    ----------
    codes : code of each layer, with the tiers of ``code``
    windows : sliding window of each layer in tokens, None in layers without; None for a table that
        does not say
    """

    name: str
    codes: tuple[CacheCode, ...]
    windows: tuple[int | None, ...] | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table.

        Raises
        ------
        UserError
            One line with the file, the field and what is allowed.
        """
        place = f"code table {str(path)!r}"
        fields = validated(_TableFile, read_toml(path, "code table"), place)
        code = CacheCode.parse(fields.code)
        layers = len(fields.key_digits)
        for name in ("value_digits", "sliding"):
            numbers = getattr(fields, name)
            if numbers is not None and len(numbers) != layers:
                raise UserError(
                    f"{place}: key_digits has {layers} layers, {name} {len(numbers)}; "
                    "must be as many"
                )
        if fields.sliding is not None and code.tiers.sliding is not None:
            raise UserError(
                f"{place}: sliding and sliding={code.tiers.sliding} in code both say the sliding "
                "window; allowed is one of them"
            )
        pairs = zip(fields.key_digits, fields.value_digits, strict=True)
        return cls(
            path.name,
            tuple(code.with_digits(*pair) for pair in pairs),
            None if fields.sliding is None else tuple(tokens or None for tokens in fields.sliding),
        )

    def __str__(self) -> str:
        text = " ".join(map(str, self.of_layers(len(self.codes))))
        return f"{self.name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def to_toml(self) -> str:
        """Return the text of the table's TOML file."""
        text = (
            f'code = "{self.codes[0]}"  # the digits below take the place of these\n'
            f"key_digits = {[code.key_digits for code in self.codes]}\n"
            f"value_digits = {[code.value_digits for code in self.codes]}\n"
        )
        if self.windows is not None:
            text += f"sliding = {[window or 0 for window in self.windows]}\n"
        return text

    @property
    def most_digits(self) -> int:
        """Most digits of a body vector of any layer."""
        return max(code.most_digits for code in self.codes)

    @property
    def feedback(self) -> bool:
        """Whether body vectors are rounded with feedback, the same for every layer."""
        return self.codes[0].feedback

    @property
    def scale_choice(self) -> ScaleChoice:
        """Choice of the body's scale, the same for every layer."""
        return self.codes[0].scale_choice

    def of_layers(self, layers: int) -> tuple[CacheCode, ...]:
        """Return the code of each layer, with the layer's sliding window if the table says one.

        Raises
        ------
        UserError
            When the table is for another number of layers.
        """
        if len(self.codes) != layers:
            raise UserError(
                f"code table {self.name!r} has {len(self.codes)} layers; the model has {layers}"
            )
        return self.codes if self.windows is None else _with_windows(self.codes, self.windows)

    def for_layers(self, windows: Sequence[int | None]) -> tuple[CacheCode, ...]:
        """Return the code of each layer of a model, with the layer's sliding window.

        Raises
        ------
        UserError
            When the table is for another number of layers, or for other sliding windows.
        """
        codes = self.of_layers(len(windows))
        for layer, (own, window) in enumerate(zip(self.windows or windows, windows, strict=True)):
            if own != window:
                raise UserError(
                    f"code table {self.name!r} has {_words(own)} in layer {layer}, the model has "
                    f"{_words(window)}; allowed are tables for the model's sliding windows, as "
                    "kvtq-hw allocate writes"
                )
        return _with_windows(codes, windows)


def read_code(text: str) -> CacheCode | CodeTable:
    """Read a spelled code, or load a code table if `text` is a path that ends in ``.toml``."""
    return CodeTable.load(Path(text)) if text.endswith(".toml") else CacheCode.parse(text)


def _with_windows(
    codes: Sequence[CacheCode], windows: Sequence[int | None]
) -> tuple[CacheCode, ...]:
    """Return the codes of a model's layers with the layers' sliding windows."""
    for layer, (code, window) in enumerate(zip(codes, windows, strict=True)):
        own = code.tiers.sliding
        if window is not None and window > _MAX_SLIDING:
            raise UserError(
                f"code: {str(code)!r} cannot have {_words(window)}, which layer {layer} of the "
                f"model has; allowed are at most {_MAX_SLIDING}"
            )
        if own not in (None, window):
            raise UserError(
                f"code: {str(code)!r} has {_words(own)}, layer {layer} of the model has "
                f"{_words(window)}; allowed are codes without sliding=N, which take the model's"
            )
    return tuple(
        replace(code, tiers=code.tiers.sliding_over(window))
        for code, window in zip(codes, windows, strict=True)
    )


def _words(window: int | None) -> str:
    """Name a layer's sliding window."""
    return "no sliding window" if window is None else f"a sliding window of {window} tokens"


def _option(text: str, option: str) -> tuple[str, Any]:
    """Return name and value of one option of a spelled code."""
    count = _COUNT.fullmatch(option)
    if count:
        return count[1], int(count[2])
    if option == "feedback":
        return option, True
    for choice in SCALE_CHOICES:
        if option == f"scale={choice}":
            return "scale", choice
    raise UserError(
        f"code: {shown(text)} has the unknown option {shown(option)}; allowed are sinks=N, "
        f"window=N, anchors=N, tier=N, sliding=N, feedback and scale={'|'.join(SCALE_CHOICES)}"
    )


#: Codes that commands compare: they differ only in the body's digits of keys and values.
STANDARD_CODES = tuple(
    CacheCode.parse(f"balanced:{digits},sinks=4,window=32,feedback")
    for digits in ("3/2", "2/2", "2/1", "1/1")
)

#: Code where none is given, and the recommended code (docs/quality.md).
DEFAULT_CODE = STANDARD_CODES[0]
