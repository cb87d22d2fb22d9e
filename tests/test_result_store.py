"""The store of results: what comes back, and what a broken file does."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from kvtq_hw.estimates.timing import LongestPath
from kvtq_hw.host.results import ResultStore

SCORE = dict[str, float]
RETRIEVED = dict[str, float | list[bool]]


def test_results_come_back(tmp_path):
    store = ResultStore(tmp_path / "new" / "results.sqlite")
    key = {"code": "int4", "segment": 1}
    assert store.get(key, RETRIEVED) is None
    store.put(key, {"nll": 0.1, "retrieved": [True, False]})
    store.put({**key, "segment": 2}, {"nll": 2.0})
    again = ResultStore(tmp_path / "new" / "results.sqlite")
    assert again.get({"segment": 1, "code": "int4"}, RETRIEVED) == {
        "nll": 0.1,
        "retrieved": [True, False],
    }
    assert again.get({**key, "segment": 3}, RETRIEVED) is None
    store.put(key, {"nll": 0.3})
    assert again.get(key, SCORE) == {"nll": 0.3}


def _write(path, worker):
    store = ResultStore(path)
    for index in range(20):
        store.put({"worker": worker, "index": index}, {"value": worker * 100 + index})


def test_several_processes_write_to_one_store(tmp_path):
    path = tmp_path / "results.sqlite"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(path, worker)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = ResultStore(path)
    for worker in range(2):
        for index in range(20):
            assert store.get({"worker": worker, "index": index}, SCORE) == {
                "value": worker * 100 + index
            }


def test_a_row_that_is_no_result_is_none(tmp_path):
    """Whatever stands in a row, it is measured again and replaced."""
    path, key = tmp_path / "results.sqlite", {"code": "int4"}
    store = ResultStore(path)
    for text in ("", "{", "[]", "null", '{"nll": NaN}', '{"nll": "x"}', '{"nll": "0.5"}',
                 '{"nll": 1, "nll": 2}', '{"nll": 1e999}', "9" * 5000, "[" * 100_000,
                 b"\xff", None):  # fmt: skip
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("REPLACE INTO results VALUES (?, ?)", ('{"code": "int4"}', text))
        assert store.get(key, SCORE) is None
        store.put(key, {"nll": 0.5})
        assert store.get(key, SCORE) == {"nll": 0.5}


def test_a_result_of_another_kind_is_none(tmp_path):
    store = ResultStore(tmp_path / "results.sqlite")
    store.put({}, {"device": "x", "start": "", "end": "", "tool": "abc"})
    assert store.get({}, LongestPath) is None
    store.put({}, {"delay_ps": 5.0, "start": "", "end": "", "tool": "abc"})
    assert store.get({}, LongestPath) == LongestPath(5.0, "", "", "abc")


def _as_text(path):
    path.write_text("this is no database, however long its text may be")


def _as_folder(path):
    path.mkdir()


def _as_other_table(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE results (name TEXT, value BLOB)")


def _as_other_constraint(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE results (key INTEGER PRIMARY KEY, result TEXT)")


def _as_cut(path):
    ResultStore(path).put({"a": "b" * 9000}, {"nll": 0.0})
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    "spoil", [_as_text, _as_folder, _as_other_table, _as_other_constraint, _as_cut]
)
def test_a_file_that_is_something_else_costs_one_warning(tmp_path, caplog, spoil):
    path, key = tmp_path / "results.sqlite", {"code": "int4"}
    spoil(path)
    store = ResultStore(path)
    assert store.get(key, SCORE) is None
    for nll in (1.0, 2.0):
        store.put(key, {"nll": nll})
        assert store.get(key, SCORE) == {"nll": nll}
    (warning,) = caplog.messages
    assert warning.startswith(f"store of results {str(path)!r}: ")
    assert warning.endswith("; what is measured now is not kept")


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = ResultStore(tmp_path / "file" / "results.sqlite")
    store.put({}, {"nll": 1.0})
    assert store.get({}, SCORE) == {"nll": 1.0}
    (warning,) = caplog.messages
    assert "File exists; what is measured now is not kept" in warning


_FULL = """
import resource, signal, sys
from pathlib import Path
from kvtq_hw.host.results import ResultStore
store = ResultStore(Path(sys.argv[1]))
store.put({"n": 0}, {"nll": 0.0})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # the disk is full from here on
for n in range(1, 40):
    store.put({"n": n, "long": "x" * 4000}, {"nll": float(n)})
kind = dict[str, float]
print([store.get({"n": n, "long": "x" * 4000}, kind)["nll"] for n in range(1, 40)])
"""


def test_a_disk_that_fills_up_loses_nothing(tmp_path):
    path = tmp_path / "results.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{[float(n) for n in range(1, 40)]}\n"
    (line,) = done.stderr.splitlines()
    assert line.endswith("; what is measured now is not kept")
    again = ResultStore(path)  # and what was stored before is whole
    assert again.get({"n": 0}, SCORE) == {"nll": 0.0}
    assert again.get({"n": 1, "long": "x" * 4000}, SCORE) == {"nll": 1.0}
    assert again.get({"n": 39, "long": "x" * 4000}, SCORE) is None


def test_a_read_only_store_is_read_and_says_so_at_once(tmp_path, caplog, monkeypatch):
    path = tmp_path / "results.sqlite"
    ResultStore(path).put({}, {"nll": 1.0})
    connect = sqlite3.connect
    read_only = f"file:{path}?mode=ro"
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: connect(read_only, uri=True))
    store = ResultStore(path)
    assert "readonly" in caplog.text
    assert store.get({}, SCORE) == {"nll": 1.0}
    store.put({}, {"nll": 2.0})
    assert store.get({}, SCORE) == {"nll": 2.0}
    assert len(caplog.messages) == 1
