"""Sweeps: the grid, what is kept when one is interrupted, and who does the work."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError
from kvtq_hw.estimates import sweep
from kvtq_hw.estimates.liberty import shipped_liberty
from kvtq_hw.estimates.sweep import Progress, configurations, sweep_areas, table
from kvtq_hw.host.results import ResultStore

TINY = load_config("tiny")
LANES = configurations(TINY, {"lanes": [2, 4, 8]})


class Inline(Executor):
    """Does each task at once, in this thread; the third is interrupted."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        if len(self.done) == 2:
            future.set_exception(KeyboardInterrupt())
        else:
            self.done.append(args[0].lanes)
            future.set_result({"um2": float(args[0].lanes)})
        return future


def area_of(config, block, source, text, gating):
    return {"um2": float(config.lanes), "measured again": 1}


# --- the grid -------------------------------------------------------------------------------------


def test_grid_is_every_combination() -> None:
    configs = configurations(TINY, {"lanes": [4, 8], "packing": ["5in8", "2bit"]})
    assert [(c.lanes, c.packing) for c in configs] == [
        (4, "5in8"),
        (4, "2bit"),
        (8, "5in8"),
        (8, "2bit"),
    ]
    assert configurations(TINY, {}) == [TINY]


def test_a_combination_that_cannot_be_built_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match=r"^lanes: 3 does not divide head_dim 8; "):
        configurations(TINY, {"lanes": [4, 3]})


# --- what is kept ---------------------------------------------------------------------------------


def test_interrupted_sweep_measures_only_the_rest(tmp_path, monkeypatch) -> None:
    store, first = ResultStore(tmp_path / "results.sqlite"), Inline()
    with pytest.raises(KeyboardInterrupt):
        sweep_areas(LANES, "packer", shipped_liberty(), store, first, lambda progress: None)
    monkeypatch.setattr(sweep, "_area", area_of)
    seen: list[Progress] = []
    with ThreadPoolExecutor(1) as pool:
        areas = sweep_areas(LANES, "packer", shipped_liberty(), store, pool, seen.append)
    kept = [area["um2"] for area in areas if "measured again" not in area]
    assert set(kept) <= {float(lanes) for lanes in first.done}
    assert len(kept) == seen[0].from_store
    assert [area["um2"] for area in areas] == [2.0, 4.0, 8.0]
    assert seen[-1] == Progress(3, 3, len(kept))


def test_equal_configurations_are_measured_once(tmp_path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(sweep, "_area", lambda *a: calls.append(a) or area_of(*a))
    with ThreadPoolExecutor(1) as pool:
        args = (
            shipped_liberty(),
            ResultStore(tmp_path / "results.sqlite"),
            pool,
            lambda progress: None,
        )
        areas = sweep_areas([TINY, TINY], None, *args)
        assert sweep_areas([TINY], None, *args) == areas[:1]
        assert (len(areas), len(calls)) == (2, 1)
        sweep_areas([TINY], "packer", *args)
    assert len(calls) == 2


def test_killed_command_keeps_what_was_done(tmp_path) -> None:
    """SIGKILL after the first area: the same command again measures the other two."""
    output = tmp_path / "out.csv"
    command = [sys.executable, "-m", "kvtq_hw", "sweep", "--preset", "tiny", "--context", "32"]
    command += ["--block", "key_lanes", "--set", "lanes=2,4,8", "-o", str(output)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert lines == ["areas: 0 of 3, 0 from the store\n", "areas: 1 of 3, 0 from the store\n"]
    assert not output.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first = again.stderr.splitlines()[0]
    assert first in [f"areas: {n} of 3, {n} from the store" for n in (1, 2)]
    assert again.stderr.splitlines()[-1].startswith("areas: 3 of 3")
    rows = list(csv.DictReader(output.read_text().splitlines()))
    sizes = [float(row["um2"]) for row in rows]
    assert [row["lanes"] for row in rows] == ["2", "4", "8"]
    assert sizes == sorted(set(sizes))


def _children(pid: int) -> set[int]:
    """Processes that a process began, and those that they began."""
    found: set[int] = set()
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            if int(fields["PPid"]) == pid:
                found |= {int(status.parent.name), *_children(int(status.parent.name))}
    return found


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc of Linux")
def test_killed_command_leaves_no_process(tmp_path) -> None:
    """SIGKILL of the command alone, while workers measure and wait: all of them end."""
    command = [sys.executable, "-m", "kvtq_hw", "sweep", "--preset", "tiny", "--context", "32"]
    command += ["--block", "key_lanes", "--set", "lanes=2,4,8", "-o", str(tmp_path / "out.csv")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        [process.stderr.readline() for _ in range(2)]
        children = _children(process.pid)
        process.kill()
        process.wait()
    assert len(children) >= 2
    end = time.monotonic() + 60
    while any(map(_is_running, children)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [child for child in children if _is_running(child)]


# --- the table ------------------------------------------------------------------------------------


def test_rows_by_configuration_and_code() -> None:
    area = dict.fromkeys(("um2", "nand2", "cells", "flip_flops", "ram_bits", "transistors"), 1)
    codes = [CacheCode("balanced", 3, 2), CacheCode("balanced", 1, 1)]
    rows = table(LANES, [area] * 3, codes, ["lanes"], 32, [])
    assert [(row["lanes"], row["code"]) for row in rows] == [
        (lanes, code) for code in ("balanced:3/2", "balanced:1/1") for lanes in (2, 4, 8)
    ]
    cycles = [row["cycles"] for row in rows[:3]]
    assert cycles == sorted(set(cycles), reverse=True)
    # 3 and 2 planes of 2 bytes, and two scales of one, over 16 elements
    assert rows[0]["bits_per_element"] == 8 * (5 * 2 + 2) / 16
    assert rows[0]["perplexity_ratio"] is None


def test_a_swept_port_width_stands_beside_the_bits_of_ram() -> None:
    area = dict.fromkeys(("um2", "nand2", "cells", "flip_flops", "ram_bits", "transistors"), 7)
    row = table([TINY], [area], [CacheCode("balanced", 3, 2)], ["memory_bits"], 32, [])[0]
    assert (row["memory_bits"], row["ram_bits"]) == (TINY.memory_bits, 7)


# --- who does the work ----------------------------------------------------------------------------


def test_dask_cluster_gives_the_same_table(tmp_path, monkeypatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "client"))
    arguments = ["sweep", "--preset", "tiny", "--context", "32", "--block", "packer"]
    arguments += ["--set", "packing=5in8,2bit", "--code", "balanced:3/2"]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster:
        remote = tmp_path / "remote.json"
        address = ["--scheduler", cluster.scheduler_address]
        assert run([*arguments, *address, "-o", str(remote)]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    local = tmp_path / "local.json"
    assert run([*arguments, "-o", str(local)]) == 0
    tables = [json.loads(file.read_text()) for file in (remote, local)]
    assert [table.pop("command") for table in tables] == [
        "kvtq-hw sweep --preset tiny --context 32 --set packing=5in8,2bit "
        f"--code balanced:3/2 --block packer -o {file}"
        for file in (remote, local)
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.txt"], "--output: 'x.txt' is not allowed; must end in .csv or .json"),
        (["-o", "x.csv", "--set", "lane=4"], "--set: 'lane=4' is not allowed; must be FIELD="),
        (["-o", "x.csv", "--set", "lanes="], "--set: 'lanes=' is not allowed; must be FIELD="),
        (["-o", "x.csv", "--set", "name=a"], "field: 'name' is not allowed; a sweep is over"),
        (["-o", "x.csv", "--set", "lanes=4,x"], "lanes: 'x' is not allowed; must be a valid int"),
        (["-o", "x.csv", "--context", "65"], "--context: 65 is more than max_context 64"),
        (["-o", "x.csv", "--block", "x"], "block: 'x' is unknown; allowed are query_buffer, "),
    ],
)
def test_errors_are_one_line(capsys, arguments: list[str], message: str) -> None:
    assert run(["sweep", "--preset", "tiny", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvtq-hw: error: {message}")
    assert not Path("x.csv").exists()


def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("kvtq_hw.estimates.workers.end_with_parent", _end_at_once)
    arguments = ["sweep", "--preset", "tiny", "--context", "32", "--block", "packer"]
    assert run([*arguments, "-o", str(tmp_path / "t.csv")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("kvtq-hw: error: a process that measured was ended from outside")
    assert not (tmp_path / "t.csv").exists()


def _end_at_once() -> None:
    os._exit(9)
