"""What has been measured: a table of results on disk that survives an interruption.

A result is stored under everything that decides it, the moment it is there; what is stored is not
measured again. Several processes may write to one store::

    store = ResultStore(cache_folder() / "estimates.sqlite")
    key = {"what": "area", "config": config.digest(), "sources": hardware_digest()}
    area = store.measured(key, dict[str, int], lambda: count_cells(config))

A store saves time and is never what a command fails of. Where its file cannot be used (a full or
read-only disk, something else in its place) one warning says so, and results are kept in memory
while the process runs. A row that is no result of the kind that is asked for is measured again and
replaced.
"""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import zlib
from collections.abc import Callable, Hashable
from contextlib import closing
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from kvtq_hw.contract.errors import warn
from kvtq_hw.contract.files import parse_json

__all__ = ["ResultStore"]

Kind = TypeVar("Kind")


class ResultStore:
    """Results by key, in an SQLite file; a write is complete or has not happened.

    Parameters
    ----------
    path : made with its folder where it is missing
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._in_memory: dict[str, str] = {}
        self._usable = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result TEXT)"
                )
                # other columns and a read-only disk show here, and not after hours
                database.execute("SELECT key, result FROM results LIMIT 0")
                database.execute("DELETE FROM results WHERE key = ''")
        except (OSError, sqlite3.Error) as error:
            self._give_up(_reason(error))

    def get(self, key: dict[str, Any], kind: type[Kind]) -> Kind | None:
        """The result stored under a key; None without one.

        Parameters
        ----------
        kind : what the result must be: a dataclass, a typed dictionary or a `dict` of types
        """
        text = _text(key)
        if text in self._in_memory:
            return _result(self._in_memory[text], kind)
        try:
            with closing(self._connect()) as database:
                row = database.execute(
                    "SELECT result FROM results WHERE key = ?", (text,)
                ).fetchone()
        except sqlite3.Error as error:
            self._give_up(_reason(error))
            return None
        return None if row is None else _result(row[0], kind)

    def put(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Store a result; an existing one under the same key is replaced."""
        row = _text(key), _text(result)
        if self._usable:
            try:
                with closing(self._connect()) as database, database:
                    database.execute("REPLACE INTO results (key, result) VALUES (?, ?)", row)
            except sqlite3.Error as error:
                self._give_up(_reason(error))
        if not self._usable:
            self._in_memory[row[0]] = row[1]

    def measured(self, key: dict[str, Any], kind: type[Kind], measure: Callable[[], Kind]) -> Kind:
        """Return the result stored under a key; without one, measure it and store it.

        Parameters
        ----------
        key : all that decides the result: inputs, versions of tools, and digests of sources
        kind : what the result is: a dataclass, or a `dict` of types
        measure : called where nothing of this kind is stored
        """
        found = self.get(key, kind)
        if found is None:
            found = measure()
            self.put(key, asdict(found) if is_dataclass(found) else found)  # type: ignore[arg-type]
        return found

    def get_text(self, key: dict[str, Any]) -> str | None:
        """Return the text stored under a key, such as a netlist; None without one."""
        found = self.get(key, dict[str, str])
        if found is None or "gzip" not in found:
            return None
        try:
            return gzip.decompress(base64.b64decode(found["gzip"])).decode()
        except (ValueError, OSError, EOFError, zlib.error):
            return None

    def put_text(self, key: dict[str, Any], text: str) -> None:
        """Store a long text, compressed."""
        data = gzip.compress(text.encode(), mtime=0)
        self.put(key, {"gzip": base64.b64encode(data).decode("ascii")})

    def _give_up(self, reason: str) -> None:
        """Warn, the first time, and keep in memory what comes from now on."""
        if self._usable:
            warn(
                f"store of results {str(self._path)!r}: {reason}; what is measured now is not kept"
            )
        self._usable = False

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)


def _result(text: object, kind: type[Kind]) -> Kind | None:
    """The result that a row holds, None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        parse_json(text)  # pydantic's own reader takes NaN and a key twice
        return _adapter(cast(Hashable, kind)).validate_json(text, strict=True)
    except ValueError:  # pydantic's is one
        return None


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _reason(error: OSError | sqlite3.Error) -> str:
    return getattr(error, "strerror", None) or str(error)


def _text(value: dict[str, Any]) -> str:
    """One text for equal values."""
    return json.dumps(value, sort_keys=True)
