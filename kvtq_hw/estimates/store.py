"""Where measured estimates are kept: the user's cache folder.

What a result depends on is its key, by content: the netlist's text, the library's, the commands and
the version of the tool. Removing the folder costs time, nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import platformdirs

from golden.result_store import ResultStore

__all__ = ["EstimateStore"]


class EstimateStore:
    """Results by key, and netlists beside them.

    Parameters
    ----------
    folder : made where it is missing; without one, a folder in the user's cache

    Raises
    ------
    UserError
        When the folder cannot be used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            folder = platformdirs.user_cache_path("kvtq-hw") / "estimates"
        self._results = ResultStore(folder / "results.sqlite")
        self._netlists = folder / "netlists"
        self._netlists.mkdir(exist_ok=True)

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The result stored under a key, None without one."""
        return self._results.get(key)

    def put(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Store a result; it is complete on disk or not there at all."""
        self._results.put(key, result)

    def get_netlist(self, key: dict[str, Any]) -> str | None:
        """The netlist stored under a key, None without one."""
        file = self._file(key)
        return gzip.decompress(file.read_bytes()).decode() if file.is_file() else None

    def put_netlist(self, key: dict[str, Any], netlist: str) -> None:
        """Store a netlist, like a result."""
        file = self._file(key)
        partial = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        partial.write_bytes(gzip.compress(netlist.encode(), mtime=0))
        partial.rename(file)

    def _file(self, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._netlists / f"{digest}.v.gz"
