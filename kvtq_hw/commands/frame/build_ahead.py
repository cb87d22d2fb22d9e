"""A verilated design is built in a process of its own, beside work that the user waits for."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates.workers import end_with_parent, processors

__all__ = ["build_ahead"]


def build_ahead(block: str, config: EngineConfig, *, quick: bool) -> None:
    """Begin to build a design's library, if a processor is free for that.

    `sim.verilated.library.load_library` of the same design then waits for the rest of the build,
    or builds the library itself if this one has failed.
    """
    from sim.verilated.library import load_library  # of an extra: missed here, not in the process

    if processors() > 1:
        context = multiprocessing.get_context("spawn")
        context.Process(
            target=_build, args=(load_library, block, config, quick), daemon=True
        ).start()


def _build(load: Callable[..., object], block: str, config: EngineConfig, quick: bool) -> None:
    end_with_parent()
    try:
        load(block, config, quick=quick)
    except UserError:
        return  # the parent meets the same error, and says so
