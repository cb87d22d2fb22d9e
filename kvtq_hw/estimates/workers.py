"""Worker processes that end with the process they work for, even where that was killed."""

from __future__ import annotations

import multiprocessing
import os
import threading

from kvtq_hw.contract.errors import LOGGER

__all__ = ["end_with_parent"]


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
