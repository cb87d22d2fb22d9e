"""Cache formats: everything that can hold a model's keys and values while quality is measured.

One string spells a format: a ternary code (``balanced:3/2``), or a baseline of
`golden.study.baselines` (``int4``, ``kivi:2``, ``oscar``). A format makes empty caches for
transformers and reports how many bytes a cache stores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from transformers import Cache

from golden.llm.calibration import Calibration
from golden.llm.models import LanguageModel
from golden.study.spectral import SpectralRotations, load_or_fit
from kvtq_hw.contract.config import EngineConfig

__all__ = ["CacheFormat", "FormatInputs", "calibration_digest", "stored_by_layers"]


class CacheFormat(Protocol):
    """A way to hold keys and values.

    Attributes
    ----------
    name : the canonical spelling
    attention : name of the attention implementation that reads the cache
    arithmetic : ``integer`` where attention follows docs/contract.md, ``float`` otherwise
    longest_chunk : largest number of tokens per forward pass for which every query sees the same as
        token by token; None for any number
    modules : names of the modules that determine the format's results, beside those of
        `golden.study.quality`
    """

    @property
    def name(self) -> str: ...
    @property
    def attention(self) -> str: ...
    @property
    def arithmetic(self) -> str: ...
    @property
    def longest_chunk(self) -> int | None: ...
    @property
    def modules(self) -> tuple[str, ...]: ...

    def make_cache(self) -> Cache:
        """Make an empty cache."""
        ...

    def stored(self, cache: Cache) -> tuple[int, int]:
        """Return the bytes that a cache of this format stores, and the elements they represent."""
        ...

    def identity(self) -> str:
        """Return what else determines a result beside name and sources, such as calibration."""
        ...


@dataclass(frozen=True)
class FormatInputs:
    """The inputs for making formats.

    language_model : the measured model
    config : engine configuration of ternary codes
    calibration : calibrates the model when a format first needs a calibration
    rotations : makes the model's rotations when a format needs them
    """

    language_model: LanguageModel
    config: EngineConfig
    calibration: Callable[[], Calibration]
    rotations: Callable[[LanguageModel], SpectralRotations] = load_or_fit


def stored_by_layers(cache: Cache) -> tuple[int, int]:
    """Sum `stored_bytes` and `stored_elements` over layers that have these methods."""
    layers = cache.layers
    return (
        sum(layer.stored_bytes() for layer in layers),
        sum(layer.stored_elements() for layer in layers),
    )


def calibration_digest(calibration: Calibration | SpectralRotations) -> str:
    """Return the hexadecimal SHA-256 of all fields of a calibration, or of rotations."""
    digest = hashlib.sha256()
    for name, value in sorted(vars(calibration).items()):
        data = value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()
