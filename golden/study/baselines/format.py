"""A baseline as a `golden.study.formats.CacheFormat`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Cache

from golden.llm.calibration import Calibration
from golden.study.baselines.layer import BASELINE_ATTENTION, BaselineCache, LayerRules
from golden.study.formats import calibration_digest, stored_by_layers

__all__ = ["BaselineFormat"]


@dataclass(frozen=True)
class BaselineFormat:
    """Rules for each layer, the module that made them, and their calibration, if they have one."""

    name: str
    family: str
    rules: tuple[LayerRules, ...]
    calibration: Calibration | None = None
    attention: str = BASELINE_ATTENTION
    arithmetic: str = "float"
    longest_chunk: int | None = None

    def make_cache(self) -> BaselineCache:
        """An empty cache."""
        return BaselineCache(self.rules)

    def stored(self, cache: Cache) -> tuple[int, int]:
        """Codes, scales, zero points, tokens in the long format, padding."""
        return stored_by_layers(cache)

    @property
    def modules(self) -> tuple[str, ...]:
        """The family's module."""
        return (self.family,)

    def identity(self) -> str:
        """The calibration where there is one."""
        return calibration_digest(self.calibration) if self.calibration else "none"
