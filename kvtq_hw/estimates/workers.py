"""Work beside each other: threads that wait for tools, processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kvtq_hw.contract.errors import LOGGER
from kvtq_hw.estimates.blocks import Part

__all__ = ["end_with_parent", "of_each_part", "processors"]

Result = TypeVar("Result")


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def of_each_part(
    work: Callable[[Part], Result], parts: Sequence[Part], jobs: int | None = None
) -> list[Result]:
    """Do some work, which a tool does, for each part, and return what it gives, in their order.

    Parameters
    ----------
    jobs : parts at a time; without a number, one per processor
    """
    with ThreadPoolExecutor(jobs or processors()) as pool:
        # the largest first: then no processor is left with it at the end
        order = sorted(range(len(parts)), key=lambda place: -len(parts[place].text))
        futures = {place: pool.submit(work, parts[place]) for place in order}
        return [futures[place].result() for place in range(len(parts))]


def end_with_parent() -> None:
    """Begin a worker: end it when its parent process ends, and leave warnings to the parent.

    A worker of `concurrent.futures` waits for the next task for ever when the process that hands
    them out was killed.
    """
    LOGGER.disabled = True
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
