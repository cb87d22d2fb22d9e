"""The catalogue of cache formats: parses a spelled code into a format that makes caches."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Cache

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.cache.attention_job import AttentionBackend
from golden.cache.ternary_cache import TernaryCache
from golden.conditioning import Conditioning
from golden.llm.calibration import Calibration
from golden.study.baselines import floats, integers, kivi, kvtq, oscar, transformers_cache
from golden.study.formats import (
    CacheFormat,
    FormatInputs,
    calibration_digest,
    stored_by_layers,
)
from kvtq_hw.contract.codes import CacheCode, CodeTable, read_code
from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError

__all__ = ["BASELINE_EXAMPLES", "TernaryFormat", "is_ternary", "parse_format", "ternary_code"]

_FAMILIES = (floats, integers, kivi, oscar, transformers_cache)

BASELINE_EXAMPLES = tuple(example for family in (*_FAMILIES, kvtq) for example in family.EXAMPLES)


def parse_format(text: str, inputs: FormatInputs, backend: AttentionBackend) -> CacheFormat:
    """Parse a spelled code: a baseline, or a ternary code as for `CacheCode.parse`.

    Parameters
    ----------
    backend : computes the attention of ternary codes

    Raises
    ------
    UserError
        When no format has this spelling.
    """
    for family in _FAMILIES:
        baseline = family.parse(text, inputs)
        if baseline is not None:
            return baseline
    published = text.startswith(kvtq.PREFIX)
    code = ternary_code(text)
    inputs.language_model.check_fits(inputs.config, [code])
    calibration = inputs.calibration()
    conditioning = (
        kvtq.unconditioned(calibration)
        if published
        else calibration.conditioning(feedback=code.feedback)
    )
    name = text if published else str(code)
    windows = inputs.language_model.windows
    return TernaryFormat(
        name, code, inputs.config, calibration, tuple(conditioning), backend, windows
    )


def is_ternary(text: str) -> bool:
    """Return whether a spelled code, valid or not, asks for a ternary cache."""
    return text.startswith(("balanced:", "residual:", kvtq.PREFIX)) or text.endswith(".toml")


def ternary_code(text: str) -> CacheCode | CodeTable:
    """Parse a ternary code, also one spelled ``kvtq:``; raise `UserError` for anything else."""
    published = text.startswith(kvtq.PREFIX)
    try:
        return read_code("residual:" + text.removeprefix(kvtq.PREFIX) if published else text)
    except UserError as error:
        raise UserError(f"{error}; or a baseline, as {', '.join(BASELINE_EXAMPLES)}") from None


@dataclass(frozen=True)
class TernaryFormat:
    """A ternary code in a `TernaryCache`; see `golden.study.formats.CacheFormat`."""

    name: str
    code: CacheCode | CodeTable
    config: EngineConfig
    calibration: Calibration
    conditioning: tuple[Conditioning, ...]
    backend: AttentionBackend
    windows: tuple[int | None, ...]
    attention: str = ATTENTION
    longest_chunk: int | None = None

    @property
    def arithmetic(self) -> str:
        """``integer`` if the backend follows the integer contract, else ``float``."""
        return "integer" if isinstance(self.backend, GoldenBackend) else "float"

    def make_cache(self) -> TernaryCache:
        """Make an empty cache."""
        return TernaryCache(self.config, self.code, self.conditioning, self.backend, self.windows)

    def stored(self, cache: Cache) -> tuple[int, int]:
        """Count packed planes and scales of all layers."""
        return stored_by_layers(cache)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of attention and of the cache."""
        return ("golden.attend.attention", "golden.cache.ternary_cache")

    def identity(self) -> str:
        """Return the digests of configuration and calibration."""
        return f"{self.config.digest()} {calibration_digest(self.calibration)}"
