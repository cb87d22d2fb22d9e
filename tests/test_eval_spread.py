"""`kvtq-hw eval --scheduler`: the same rows from a cluster, each stored as soon as it comes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tiny_model import evaluation_folder, save_tiny_model

from golden.study import quality
from kvtq_hw.commands.frame import spread
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.commands.frame.cluster import connected
from kvtq_hw.contract.errors import UserError

distributed = pytest.importorskip("distributed")

TABLE = 'code = "balanced:1/1,sinks=2,window=8"\nkey_digits = [3, 1]\nvalue_digits = [2, 1]\n'
CODES = (
    "balanced:2/1,sinks=2,window=8,feedback",
    "oscar,window=8",
    "digits.toml",
    "int3,conditioned",
    "kivi:4,group=8",
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A tiny model in `model`, a text in `text.txt`; every cache folder is temporary."""
    evaluation_folder(tmp_path, monkeypatch, 450)
    (tmp_path / "digits.toml").write_text(TABLE)
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two workers in this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as made:
        yield made


def evaluated(*more: str, needles: int = 1) -> dict[str, Any]:
    """The result file of an evaluation of two segments."""
    arguments = ["eval", "--model", "./model", "--text", "text.txt", "--context", "200"]
    arguments += ["--segments", "2", "--needle", str(needles), "--json", "r.json"]
    for code in CODES:
        arguments += ["--code", code]
    assert run([*arguments, *more]) == 0
    return json.loads(Path("r.json").read_text())


def test_workers_give_the_same_results(folder, cluster, monkeypatch):
    remote = evaluated("--scheduler", cluster.scheduler_address, "--attention", "integer")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "other"))
    local = evaluated("--attention", "integer")
    assert remote == local
    assert len(local["rows"]) == len(CODES)
    assert all(row["kld"] > 0 and row["needle"] is not None for row in local["rows"])


def test_a_process_gives_the_same_results_and_is_killed(folder, monkeypatch):
    """The scheduler gives a task no second worker."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
    ):
        remote = evaluated("--scheduler", cluster.scheduler_address, needles=0)
        with (
            pytest.raises(UserError, match=r"^a process that measured was ended from outside"),
            connected(cluster.scheduler_address) as client,
        ):
            client.submit(os._exit, 9).result()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "other"))
    assert remote == evaluated(needles=0)


def test_what_came_before_a_failure_is_kept(folder, cluster, monkeypatch, capsys):
    measured: list[str] = []
    whole = quality.evaluate_segment

    def failing(model, reference, cache_format, **options):
        if cache_format.name == "kivi:4,group=8":
            raise UserError("disk: full")
        measured.append(cache_format.name)
        return whole(model, reference, cache_format, **options)

    monkeypatch.setattr(quality, "evaluate_segment", failing)
    arguments = ["eval", "--model", "./model", "--text", "text.txt", "--context", "40"]
    arguments += ["--segments", "2", *(word for code in CODES for word in ("--code", code))]
    address = ["--scheduler", cluster.scheduler_address]
    assert run([*arguments, *address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvtq-hw: error: worker inproc://")
    assert line.endswith(": disk: full")
    assert set(measured) >= {*CODES} - {"digits.toml", "kivi:4,group=8"}
    measured.clear()

    def counting(model, reference, cache_format, **options):
        measured.append(cache_format.name)
        return whole(model, reference, cache_format, **options)

    monkeypatch.setattr(quality, "evaluate_segment", counting)
    assert run(arguments) == 0
    # the worker that failed had sent the results of its other codes
    assert len(measured) <= len(CODES) + 1
    assert measured.count("kivi:4,group=8") == 2


def test_workers_stop_where_the_command_is_interrupted(folder, cluster, monkeypatch):
    started, ended = Event(), Event()

    def endless(model, reference, cache_format, on_tokens):
        started.set()
        try:
            while True:
                on_tokens(1)
                time.sleep(0.01)
        finally:
            ended.set()

    def interrupted(*_: object, **__: object) -> None:
        assert started.wait(60)
        assert not ended.is_set()
        raise KeyboardInterrupt

    monkeypatch.setattr(quality, "evaluate_segment", endless)
    monkeypatch.setattr(distributed, "as_completed", interrupted)
    arguments = ["eval", "--model", "./model", "--text", "text.txt", "--context", "40"]
    arguments += ["--segments", "1", "--code", "int4", "--scheduler", cluster.scheduler_address]
    assert run(arguments) == 130
    assert ended.wait(60)


def test_a_worker_with_another_model_refuses(folder, cluster, monkeypatch, capsys):
    save_tiny_model(folder / "other", seed=1)
    capsys.readouterr()
    monkeypatch.setattr(
        spread.ModelPlace, "elsewhere", lambda self: replace(self, source=str(folder / "other"))
    )
    arguments = ["eval", "--model", "./model", "--text", "text.txt", "--context", "40"]
    # one code, hence one share: a second worker would load the model meanwhile, in a thread of this
    # process, and loading redirects stderr
    arguments += ["--segments", "1", "--code", "unquantized"]
    assert run([*arguments, "--scheduler", cluster.scheduler_address]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvtq-hw: error: worker inproc://")
    assert ": model: '" in line and "must be the same model" in line


def test_a_scheduler_that_is_not_there(folder, capsys):
    arguments = ["eval", "--model", "./model", "--text", "text.txt"]
    assert run([*arguments, "--scheduler", "tcp://127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvtq-hw: error: --scheduler: 'tcp://127.0.0.1:1': no Dask scheduler")


def test_a_cluster_without_workers_is_waited_for(caplog):
    with (
        distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        connected(empty.scheduler_address),
    ):
        pass
    assert "has no workers, and the work waits for one; start it with: dask worker" in caplog.text


def test_a_scheduler_that_goes_away_is_one_line():
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        pytest.raises(UserError, match=r"went away; run again: what was measured is kept$"),
        connected(cluster.scheduler_address) as client,
    ):
        future = client.submit(len, "abc")
        cluster.close()
        future.result()
