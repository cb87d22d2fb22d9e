"""Files: what is read is checked, what is written is whole or not there, whatever the disk does."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from input_files import CONFIG, TABLE

from golden.tensors import write_tensors
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract import files
from kvtq_hw.contract.codes import read_code
from kvtq_hw.contract.config import load_config
from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.files import (
    check_destination,
    disk_errors,
    json_text,
    parse_json,
    read_text,
    scratch_folder,
    whole,
    write_text,
)

MARK = b"\xef\xbb\xbf"


# --- reading --------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path) -> None:
    config, table = tmp_path / "config.toml", tmp_path / "table.toml"
    config.write_bytes(MARK + CONFIG.replace("\n", "\r\n").encode())
    table.write_bytes(MARK + TABLE.encode())
    assert load_config(config).lanes == 4
    assert read_code(str(table)).of_layers(2)[0].key_digits == 3
    (tmp_path / "text").write_bytes(MARK + b"a\r\nb\rc")
    assert read_text(tmp_path / "text", "text") == "a\nb\nc"


def test_no_more_is_read_than_allowed(tmp_path, monkeypatch) -> None:
    (tmp_path / "x").write_bytes(bytes(11))
    assert files.read_bytes(tmp_path / "x", "file", 11) == bytes(11)
    with pytest.raises(UserError, match=r"^file '/dev/zero': larger than 10 bytes$"):
        files.read_bytes(Path("/dev/zero"), "file", 10)


def test_values_are_shown_whatever_they_are() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(16**5000) == "a int too large to show"
    assert shown(deep) == "a list too large to show"
    assert shown("x" * 1000) == "'" + "x" * 79 + "..."
    assert shown("a\nb") == "'a\\nb'"


def test_json_is_written_without_what_json_does_not_have() -> None:
    value = {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf}}
    assert parse_json(json_text(value)) == {"a": [1.5, None, [None]], "b": {"c": None}}
    assert json_text({"a": 1.5}) == json.dumps({"a": 1.5}, indent=2) + "\n"


# --- writing --------------------------------------------------------------------------------------


def test_folders_are_made_and_an_old_file_is_replaced(tmp_path) -> None:
    file = tmp_path / "a" / "b" / "x"
    write_text(file, "one", "file")
    write_text(file, "two", "file")
    assert file.read_text() == "two"
    assert list(file.parent.iterdir()) == [file]


def test_permissions_are_those_of_any_file(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "", "file")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        write_text(tmp_path / "old", "", "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_a_link_stays_a_link(tmp_path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "x", "file")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_leaves_the_old_file(tmp_path, error) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    with pytest.raises(error), whole(file, "file") as scratch:
        scratch.write_text("half")
        raise error
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_device_gets_the_bytes(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^file '/dev/full': No space left on device$"):
        write_text(Path("/dev/full"), "x", "file")
    write_text(Path("/dev/null"), "x", "file")
    assert Path("/dev/null").is_char_device()
    script = "from pathlib import Path; from kvtq_hw.contract.files import write_text; "
    script += "print('printed', flush=True); write_text(Path('/dev/stdout'), 'written', 'file')"
    out = tmp_path / "out"
    with out.open("w") as target:
        subprocess.run([sys.executable, "-c", script], stdout=target, check=True)
    assert out.read_text() == "printed\nwritten"


def test_a_pipe_gets_the_bytes(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        write_text(pipe, "x" * 100_000, "file")
        assert reader.communicate()[0] == b"x" * 100_000
    assert pipe.is_fifo()


def _steps(folder: Path) -> dict[str, Callable[[Path], None]]:
    return {
        "text": lambda file: write_text(file, "x" * 100_000, "file"),
        "tensors": lambda file: write_tensors(file, "file", {"x": torch.zeros(50_000)}, {}),
    }


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_a_disk_that_is_full_leaves_the_old_file(tmp_path, kind) -> None:
    """The limit of a file's size stands for the disk: writing ends in its middle."""
    file = tmp_path / "x"
    file.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=rf"^file '{file}': File too large$"):
            _steps(tmp_path)[kind](file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("function", ["fsync", "open", "close"])
def test_any_call_of_the_disk_may_fail(tmp_path, monkeypatch, function) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    real, calls = getattr(os, function), []

    def fails(*arguments, **options):
        result = None if function == "open" else real(*arguments, **options)
        calls.append(result)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, function, fails)
    with pytest.raises(UserError, match=r"Input/output error$"):
        write_text(file, "new", "file")
    monkeypatch.undo()
    assert calls
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_destinations_are_checked_without_a_trace(tmp_path) -> None:
    check_destination(tmp_path / "a" / "b" / "x", "file")
    check_destination(Path("/dev/stdout"), "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_must_not_be_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "x")
    with pytest.raises(UserError, match=r"^file '.*x': Permission denied$"):
        write_text(tmp_path / "x", "new", "file")
    with pytest.raises(UserError, match=r"^file '/proc/x/y': No such file or directory$"):
        check_destination(Path("/proc/x/y"), "file")
    assert (tmp_path / "x").read_text() == "old"


# --- folders --------------------------------------------------------------------------------------


def test_a_temporary_folder_that_is_full_is_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^temporary folder '.*': No space left"), scratch_folder():
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), scratch_folder():
        (tmp_path / "elsewhere").read_text()


def test_no_temporary_folder_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"^temporary folder: "), scratch_folder():
        pass


def test_errors_of_a_disk_are_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^cache '.*gone': No such file"), disk_errors("cache"):
        (tmp_path / "gone").read_text()


# --- commands -------------------------------------------------------------------------------------


def test_a_sweep_onto_a_full_disk_is_one_line_and_can_go_on(tmp_path, capsys, monkeypatch) -> None:
    """What was measured is in the store: the same sweep, to another place, measures nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "full.csv").symlink_to("/dev/full")
    command = ["sweep", "--preset", "tiny", "--context", "32", "--block", "packer", "-o"]
    assert run([*command, str(tmp_path / "full.csv")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (f"kvtq-hw: error: --output '{tmp_path}/full.csv': No space left on device")
    assert run([*command, str(tmp_path / "t.csv")]) == 0
    assert capsys.readouterr().err == "areas: 1 of 1, 1 from the store\n"


def test_generated_files_are_whole_or_not_there(tmp_path, capsys, monkeypatch) -> None:
    """The disk is full in the middle of the second file: the first is whole, nothing else is."""
    monkeypatch.setattr("rtl.blocks.emit_block", lambda block, *rest, **options: block * 20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, before[1]))
    try:
        status = run(["generate", "--preset", "tiny", "-o", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert status == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("kvtq_tiny_accelerator.v': File too large")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_store_that_cannot_be_used_costs_a_warning(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "kvtq-hw").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    table = tmp_path / "t.csv"
    command = ["sweep", "--preset", "tiny", "--context", "32", "--block", "packer"]
    assert run([*command, "--set", "lanes=4,8", "-o", str(table)]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    (warning,) = warnings
    assert warning.startswith("kvtq-hw: warning: store of results ")
    assert len(table.read_text().splitlines()) == 3
