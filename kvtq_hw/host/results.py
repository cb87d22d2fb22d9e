"""Store of measured results: a table on disk that survives an interruption.

The key of a result is everything that decides the result. A result is stored as soon as it is
measured, and is not measured again. Several processes may write to one store::

    store = ResultStore(cache_folder() / "estimates.sqlite")
    key = {"what": "area", "config": config.digest(), "sources": hardware_digest()}
    area = store.measured(key, dict[str, int], lambda: count_cells(config))

A store saves time, and no command fails because of the store. If the file cannot be used (a full or
read-only disk, something else in its place), the store warns once and keeps results in memory while
the process runs. A row that is no valid result of the requested type is measured again and
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
    """Store of results by key, in an SQLite file; a write is atomic.

    Parameters
    ----------
    path : path of the file; the file and its folder are made if missing
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
                # other columns or a read-only disk fail here, and not after hours of work
                database.execute("SELECT key, result FROM results LIMIT 0")
                database.execute("DELETE FROM results WHERE key = ''")
        except (OSError, sqlite3.Error) as error:
            self._give_up(_reason(error))

    def get(self, key: dict[str, Any], kind: type[Kind]) -> Kind | None:
        """Return the result stored under a key; None if there is none.

        Parameters
        ----------
        kind : type of the result: a dataclass, a typed dictionary or a `dict` of types
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
        """Store a result; replaces an existing result under the same key."""
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
        """Return the result stored under a key; if there is none, measure and store the result.

        Parameters
        ----------
        key : everything that decides the result: inputs, versions of tools, digests of sources
        kind : type of the result: a dataclass, or a `dict` of types
        measure : called if no result of this type is stored
        """
        found = self.get(key, kind)
        if found is None:
            found = measure()
            self.put(key, asdict(found) if is_dataclass(found) else found)  # type: ignore[arg-type]
        return found

    def get_text(self, key: dict[str, Any]) -> str | None:
        """Return the text stored under a key, such as a netlist; None if there is none."""
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
        """Warn once, and from now on keep results in memory."""
        if self._usable:
            warn(
                f"store of results {str(self._path)!r}: {reason}; what is measured now is not kept"
            )
        self._usable = False

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)


def _result(text: object, kind: type[Kind]) -> Kind | None:
    """Return the result in a row's text; None if the text is no result of this type."""
    if not isinstance(text, str):
        return None
    try:
        parse_json(text)  # pydantic's own reader accepts NaN and repeated keys
        return _adapter(cast(Hashable, kind)).validate_json(text, strict=True)
    except ValueError:  # pydantic's ValidationError is a ValueError
        return None


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def _reason(error: OSError | sqlite3.Error) -> str:
    return getattr(error, "strerror", None) or str(error)


def _text(value: dict[str, Any]) -> str:
    """Return a canonical text: equal values give the same text."""
    return json.dumps(value, sort_keys=True)
