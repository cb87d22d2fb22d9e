"""Parallel work: threads that wait for tools, and processes that end with their parent."""

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
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def of_each_part(
    work: Callable[[Part], Result], parts: Sequence[Part], jobs: int | None = None
) -> list[Result]:
    """Call `work`, which waits for a tool, on each part; return the results in order.

    Parameters
    ----------
    jobs : parts at the same time; None for one per processor
    """
    with ThreadPoolExecutor(jobs or processors()) as pool:
        # the largest part first, so that no processor works on it alone at the end
        order = sorted(range(len(parts)), key=lambda place: -len(parts[place].text))
        futures = {place: pool.submit(work, parts[place]) for place in order}
        return [futures[place].result() for place in range(len(parts))]


def end_with_parent() -> None:
    """Set up a worker process: it ends when its parent ends and leaves warnings to the parent.

    Without this, a worker of `concurrent.futures` waits forever for its next task after its parent
    was killed.
    """
    LOGGER.disabled = True
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
