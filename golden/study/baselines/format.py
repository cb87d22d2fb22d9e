"""Baselines as implementations of `golden.study.formats.CacheFormat`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Cache

from golden.llm.calibration import Calibration
from golden.study.baselines.layer import BASELINE_ATTENTION, BaselineCache, LayerRules
from golden.study.formats import calibration_digest, stored_by_layers
from golden.study.spectral import SpectralRotations

__all__ = ["BaselineFormat"]


@dataclass(frozen=True)
class BaselineFormat:
    """A baseline: rules for each layer, the module that made the rules, and any calibration."""

    name: str
    family: str
    rules: tuple[LayerRules, ...]
    calibration: Calibration | SpectralRotations | None = None
    attention: str = BASELINE_ATTENTION
    arithmetic: str = "float"
    longest_chunk: int | None = None

    def make_cache(self) -> BaselineCache:
        """Make an empty cache."""
        return BaselineCache(self.rules)

    def stored(self, cache: Cache) -> tuple[int, int]:
        """Count codes, scales, zero points, tokens in the long format and padding."""
        return stored_by_layers(cache)

    @property
    def modules(self) -> tuple[str, ...]:
        """The family's module."""
        return (self.family,)

    def identity(self) -> str:
        """Return the calibration's digest, or "none" without a calibration."""
        return calibration_digest(self.calibration) if self.calibration else "none"
