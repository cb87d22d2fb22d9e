"""Crash files: written after a fault in the program, to be attached to a bug report."""

from __future__ import annotations

import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from kvtq_hw import __version__
from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import write_text
from kvtq_hw.contract.folders import cache_folder

__all__ = ["write_crash"]


def write_crash(error: BaseException, arguments: Sequence[str]) -> str:
    """Write traceback, arguments and versions into a crash file; return text for the error's line.

    The file is in the folder `crashes` of the user's cache, or else in the temporary folder. If
    neither can be written, the returned text has the end of the traceback itself.
    """
    text = _text(error, arguments)
    name = f"kvtq-hw-crash-{time.strftime('%Y%m%d-%H%M%S')}-{time.perf_counter_ns() % 10**9:09}.txt"
    reasons = []
    for folder in (cache_folder() / "crashes", _temporary_folder()):
        if folder is None:
            continue
        try:
            write_text(folder / name, text, "crash file")
        except UserError as reason:
            reasons.append(str(reason))
        else:
            failed = f" ({reasons[0]})" if reasons else ""
            return f"please report it with the crash file {str(folder / name)!r}{failed}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"please report it: {error} in {place.filename}, line {place.lineno}, {place.name}; "
        f"{'; '.join(reasons)}"
    )


def _temporary_folder() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # there is no writable temporary folder
        return None


def _text(error: BaseException, arguments: Sequence[str]) -> str:
    packages = sorted({f"{item.name} {item.version}" for item in metadata.distributions()})
    return "\n".join(
        [
            f"kvtq-hw {__version__}",
            f"arguments: {shlex.join(arguments)}",
            f"Python {sys.version.replace(chr(10), ' ')}",
            f"platform: {platform.platform()}",
            "",
            *traceback.format_exception(error),
            *packages,
            "",
        ]
    )
