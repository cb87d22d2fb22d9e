"""Archives of generated files that are the same bytes wherever and whenever they are made."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import metadata

from kvtq_hw.contract.errors import UserError

__all__ = ["ARCHIVES", "archive_bytes", "licence_text"]

_DATE = (1980, 1, 1, 0, 0, 0)  # of every file: the first that ZIP can say
_SECONDS = 315_532_800  # the same, since 1970
_MODE = 0o644
_LEVEL = 9


def archive_bytes(name: str, files: Mapping[str, str]) -> bytes:
    """Return an archive of text files: ZIP or a compressed tar file, as its own name ends.

    The files are in the order of their names. Their dates, owners and rights are always the same,
    so the bytes depend on names, texts and Python's zlib alone.

    Parameters
    ----------
    name : name of the archive; its ending is one of `ARCHIVES`
    files : texts by path, with ``/`` between folders

    Raises
    ------
    ValueError
        For a name with another ending.
    """
    for ending, write in ARCHIVES.items():
        if name.endswith(ending):
            return write({path: files[path].encode() for path in sorted(files)})
    raise ValueError(f"archive: {name!r} is not allowed; must end in {' or '.join(ARCHIVES)}")


def licence_text() -> str:
    """Return the text of this distribution's licence.

    Raises
    ------
    UserError
        When the distribution is not installed, or was installed without it.
    """
    # in a checkout the first metadata may be those that a build has left there, without the text
    for distribution in metadata.distributions(name="kvtq-hw"):
        if text := distribution.read_text("licenses/LICENSE"):
            return text
    raise UserError("licence: not found; install kvtq-hw with pip")


def _zip(files: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for path, content in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.create_system = 3  # Unix: whatever wrote it
            entry.external_attr = _MODE << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED, _LEVEL)
    return data.getvalue()


def _tar(files: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", _LEVEL, data, mtime=_SECONDS) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mtime, entry.mode = len(content), _SECONDS, _MODE
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


#: Writers of archives by the ending of the archive's name.
ARCHIVES = {".zip": _zip, ".tar.gz": _tar}
