"""Archives of generated files: complete, and the same bytes in every run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from kvtq_hw import __version__
from kvtq_hw.commands.frame.archive import ARCHIVES, archive_bytes, licence_text
from kvtq_hw.commands.frame.cli import run
from kvtq_hw.contract.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = {"core-1/b.v": "module b; endmodule\n", "core-1/a/ä.txt": "ä" * 200, "core-1/a.h": ""}
PROGRAM = "import sys; from kvtq_hw.commands.frame.cli import run; sys.exit(run(sys.argv[1:]))"


def unpacked(data: bytes) -> dict[str, bytes]:
    """Files of an archive by path, in the order of the archive."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            return {name: packed.read(name) for name in packed.namelist()}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
        return found


@pytest.mark.parametrize("ending", ARCHIVES)
def test_archive_has_the_files(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive_bytes(f"core{ending}", FILES)
    assert list(unpacked(data).items()) == sorted((n, t.encode()) for n, t in FILES.items())
    # at another time, in another order
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    assert archive_bytes(f"other{ending}", dict(reversed(FILES.items()))) == data


def test_files_can_be_read_by_all_and_have_a_date() -> None:
    with zipfile.ZipFile(io.BytesIO(archive_bytes("a.zip", FILES))) as packed:
        for entry in packed.infolist():
            assert (entry.external_attr >> 16, entry.date_time[:3]) == (0o644, (1980, 1, 1))
    with tarfile.open(fileobj=io.BytesIO(archive_bytes("a.tar.gz", FILES))) as tar:
        for member in tar:
            assert (member.mode, time.gmtime(member.mtime)[:3]) == (0o644, (1980, 1, 1))
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")


def test_other_endings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^archive: 'a\.gz' is not allowed; must end in \.zip or"):
        archive_bytes("a.gz", FILES)
    file = tmp_path / "core.gz"
    out = ["-o", str(tmp_path / "out"), "--archive", str(file)]
    assert run(["generate", "--preset", "tiny", *out]) == 1
    expected = f"--archive: {str(file)!r} is not allowed; must end in .zip or .tar.gz\n"
    assert capsys.readouterr().err == f"kvtq-hw: error: {expected}"
    assert not list(tmp_path.iterdir())


def test_licence_behind_metadata_of_a_build(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install -e .` leaves such a folder in the checkout, without the licence."""
    folder = tmp_path / "kvtq_hw.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text(
        f"Metadata-Version: 2.4\nName: kvtq-hw\nVersion: {__version__}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.distribution("kvtq-hw").read_text("licenses/LICENSE") is None
    assert licence_text() == (ROOT / "LICENSE").read_text("utf-8")


def test_without_a_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda name: iter(()))
    with pytest.raises(UserError, match=r"^licence: not found; install kvtq-hw with pip$"):
        licence_text()


def test_runs_give_the_same_bytes(tmp_path: Path) -> None:
    """In other folders, with other rights, time zones and orders of sets; all files are in it."""
    archives = []
    for name, ending, umask, zone in (
        ("one", ".zip", 0o022, "UTC"),
        ("two", ".zip", 0o077, "Asia/Tokyo"),
        ("one", ".tar.gz", 0o077, "Asia/Tokyo"),
        ("other", ".tar.gz", 0o002, "UTC"),
    ):
        folder = tmp_path / f"{name}{ending}"
        folder.mkdir()
        place = str(folder / f"{name}{ending}")
        arguments = ["generate", "--preset", "tiny", "-o", "out", "--archive", place]
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TZ": zone, "PYTHONHASHSEED": str(umask)},
            umask=umask,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        data = Path(place).read_bytes()
        archives.append(data)
        files = {
            f"kvtq_tiny-{__version__}/{path.name}": path.read_bytes()
            for path in (folder / "out").iterdir()
        }
        licence = {f"kvtq_tiny-{__version__}/LICENSE": (ROOT / "LICENSE").read_bytes()}
        assert unpacked(data) == files | licence
        endings = {Path(file).suffix for file in files}
        expected = {".v", ".json", ".vlt", ".sdc", ".core", ".xml", ".rdl", ".sv", ".h", ".c"}
        assert endings == expected
    assert archives[0] == archives[1]
    assert archives[2] == archives[3]
