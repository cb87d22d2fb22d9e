"""The store of results: what comes back, and what a broken file does."""

from __future__ import annotations

import multiprocessing

import pytest

from golden.result_store import ResultStore
from kvtq_hw.errors import UserError


def test_results_come_back(tmp_path):
    store = ResultStore(tmp_path / "new" / "results.sqlite")
    key = {"code": "int4", "segment": 1}
    assert store.get(key) is None
    store.put(key, {"nll": 0.1, "retrieved": [True, False]})
    store.put({**key, "segment": 2}, {"nll": 2.0})
    again = ResultStore(tmp_path / "new" / "results.sqlite")
    assert again.get({"segment": 1, "code": "int4"}) == {"nll": 0.1, "retrieved": [True, False]}
    assert again.get({**key, "segment": 3}) is None
    store.put(key, {"nll": 0.3})
    assert again.get(key) == {"nll": 0.3}


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
            assert store.get({"worker": worker, "index": index}) == {"value": worker * 100 + index}


def test_a_file_that_is_something_else(tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_text("this is no database, however long its text may be")
    with pytest.raises(UserError, match=r"^store of results '.*results.sqlite': file is not a dat"):
        ResultStore(path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^store of results '.*': .*File exists"):
        ResultStore(tmp_path / "file" / "results.sqlite")
