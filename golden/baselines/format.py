"""A baseline as a `golden.formats.CacheFormat`."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Cache

from golden.baselines.layer import BASELINE_ATTENTION, BaselineCache, LayerRules
from golden.calibration import Calibration
from golden.formats import calibration_digest, stored_by_layers
from kvtq_hw.sources import source_digest

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

    def identity(self) -> str:
        """The sources, and the calibration where there is one."""
        calibration = calibration_digest(self.calibration) if self.calibration else "none"
        return f"{calibration} {source_digest(self.family, 'golden.quality')}"
