"""Where measured estimates are kept: the user's cache folder.

What a result depends on is its key, by content: the netlist's text, the library's, the commands and
the version of the tool. Removing the folder costs time, nothing else; so does one that cannot be
used, as `kvtq_hw.host.results` says.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, TypeVar

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import write_bytes
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.host.results import ResultStore

__all__ = ["EstimateStore"]

Kind = TypeVar("Kind")


class EstimateStore:
    """Results by key, and netlists beside them.

    Parameters
    ----------
    folder : made where it is missing; without one, a folder in the user's cache
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            folder = cache_folder() / "estimates"
        self._results = ResultStore(folder / "results.sqlite")
        self._netlists = folder / "netlists"
        self._in_memory: dict[Path, str] = {}

    def get(self, key: dict[str, Any], kind: type[Kind]) -> Kind | None:
        """The result stored under a key, None without one; `kind` is what it must be."""
        return self._results.get(key, kind)

    def put(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Store a result; it is complete on disk or not there at all."""
        self._results.put(key, result)

    def get_netlist(self, key: dict[str, Any]) -> str | None:
        """The netlist stored under a key, None without one or where its file is broken."""
        file = self._file(key)
        if file in self._in_memory:
            return self._in_memory[file]
        try:
            return gzip.decompress(file.read_bytes()).decode()
        except (OSError, EOFError, zlib.error, UnicodeDecodeError):
            return None

    def put_netlist(self, key: dict[str, Any], netlist: str) -> None:
        """Store a netlist, like a result."""
        file = self._file(key)
        try:
            write_bytes(file, gzip.compress(netlist.encode(), mtime=0), "netlist")
        except UserError as error:
            self._results.give_up(str(error))
            self._in_memory[file] = netlist

    def _file(self, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._netlists / f"{digest}.v.gz"
