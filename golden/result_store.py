"""What has been measured: a table of results on disk that survives an interruption.

A result is stored under everything that decides it, the moment it is there; what is stored is not
measured again. Several processes may write to one store.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from kvtq_hw.errors import UserError

__all__ = ["ResultStore"]


class ResultStore:
    """Results by key, in an SQLite file; a write is complete or has not happened.

    Parameters
    ----------
    path : made with its folder where it is missing

    Raises
    ------
    UserError
        When the file cannot be opened or is something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result TEXT)"
                )
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"store of results {str(path)!r}: {error}") from None

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The result stored under a key, None without one."""
        with closing(self._connect()) as database:
            row = database.execute(
                "SELECT result FROM results WHERE key = ?", (_text(key),)
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: dict[str, Any], result: dict[str, Any]) -> None:
        """Store a result; an existing one under the same key is replaced."""
        with closing(self._connect()) as database, database:
            database.execute("REPLACE INTO results VALUES (?, ?)", (_text(key), _text(result)))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)


def _text(value: dict[str, Any]) -> str:
    """One text for equal values."""
    return json.dumps(value, sort_keys=True)
