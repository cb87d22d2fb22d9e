"""kvtq-hw: ternary KV-cache attention in hardware: generate, simulate, compare, measure.

From Python, four functions do the main things; `kvtq_hw.api` documents them::

    cache = kvtq_hw.ternary_cache(model, code="balanced:3/2,sinks=4,window=32,feedback")
    model.generate(**inputs, past_key_values=cache)

    quality = kvtq_hw.evaluate(model, formats=["balanced:3/2", "int4", "kivi:2"])

    outputs = kvtq_hw.attention(queries, keys, values, code="balanced:3/2")

    verilog = kvtq_hw.generate_verilog("smollm2", "engine")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvtq_hw.api import attention, evaluate, generate_verilog, ternary_cache

__all__ = ["attention", "evaluate", "generate_verilog", "ternary_cache"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import `kvtq_hw.api` when one of its functions is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("kvtq_hw.api"), name)


def __dir__() -> list[str]:
    """Return the names of the functions beside those that are there already."""
    return sorted({*globals(), *__all__})
