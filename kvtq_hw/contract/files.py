"""Files: reads are complete and checked; a written file appears complete or not at all.

A file error is a `UserError` of one line: what the file is for, its path, the reason.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kvtq_hw.contract.errors import UserError, shown

__all__ = [
    "LARGEST_FILE",
    "Schema",
    "check_destination",
    "check_folder",
    "csv_text",
    "decoded",
    "disk_errors",
    "first_problem",
    "json_text",
    "make_folder",
    "parse_json",
    "read_as",
    "read_bytes",
    "read_text",
    "read_toml",
    "scratch_folder",
    "validated",
    "whole",
    "write_bytes",
    "write_text",
]

#: Largest file in bytes that is read into memory.
LARGEST_FILE = 1 << 29
#: Largest TOML file in bytes, and most dots per line: `tomllib` takes time quadratic in both.
LARGEST_TOML = 1 << 18
MOST_DOTS = 200


class Schema(BaseModel):
    """Base class of schemas: the fields that a JSON file must hold; further fields are allowed."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


# --- reading --------------------------------------------------------------------------------------


def read_bytes(path: Path, what: str, largest: int = LARGEST_FILE) -> bytes:
    """Return a file's bytes.

    Parameters
    ----------
    what : what the file is for; every message begins with it

    Raises
    ------
    UserError
        When the file cannot be read or is larger than `largest` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise _failure(path, what, error) from None
    if len(data) > largest:
        raise UserError(f"{what} {str(path)!r}: larger than {largest:,} bytes")
    return data


def decoded(data: bytes, path: Path, what: str) -> str:
    """Decode a file's bytes as UTF-8 text, without a byte-order mark.

    Raises
    ------
    UserError
        When the bytes are no UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {str(path)!r}: not UTF-8 text") from None


def read_text(path: Path, what: str) -> str:
    """Return a file's text: UTF-8, with or without a byte-order mark; newlines become ``\\n``.

    Raises
    ------
    UserError
        When the file cannot be read, is too large or is no UTF-8.
    """
    text = decoded(read_bytes(path, what), path, what)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return the top-level table of a TOML file.

    Raises
    ------
    UserError
        When the file cannot be read, or is no TOML that Python can represent.
    """
    text = decoded(read_bytes(path, what, LARGEST_TOML), path, what)
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise UserError(f"{what} {str(path)!r}: a line has more than {MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {str(path)!r}: not TOML: {_unreadable(error)}") from None


def parse_json(text: str) -> Any:
    """Parse JSON text and return its value.

    Raises
    ------
    ValueError
        One line, when the text is no JSON, repeats a key of an object, holds a number that is not
        finite, is nested too deeply for Python or has too long integers for Python.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_not_a_number, parse_float=_number
        )
        if "\\u" in text:  # an escape may spell half a surrogate pair, which is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(_unreadable(error)) from None


def read_as(model: type[Model], path: Path, what: str) -> Model:
    """Return the content of a JSON file as an object of a schema.

    Raises
    ------
    UserError
        When the file cannot be read, is no JSON or does not match the schema.
    """
    try:
        value = parse_json(read_text(path, what))
    except ValueError as error:
        raise UserError(f"{what} {str(path)!r}: not JSON: {error}") from None
    return validated(model, value, f"{what} {str(path)!r}")


def validated(model: type[Model], value: object, place: str) -> Model:
    """Check plain values by a schema and return its object; a `UserError` begins with `place`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{place}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Describe the first problem of a validation error: field, value, what is allowed."""
    first = error.errors(include_url=False)[0]
    field = shown(".".join(str(part) for part in first["loc"]))[1:-1]
    if first["type"] == "value_error":  # a check of our own: its message names the field
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{field}: missing"
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown field"
    requirement = first["msg"].removeprefix("Input should ").removeprefix("String should ")
    prefix = f"{field}: " if field else ""
    return f"{prefix}{shown(first['input'])} is not allowed; must {requirement}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object has the key {shown(name)} twice")
        found[name] = value
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is larger than any number here")
    return number


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _unreadable(error: ValueError | RecursionError) -> str:
    """Describe why a parser of Python's standard library rejected a text."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return "a text holds half a pair of surrogates"
    return "an integer has too many digits" if "int_max_str" in str(error) else str(error)


# --- writing --------------------------------------------------------------------------------------


def check_destination(path: Path | None, what: str) -> None:
    """Raise `UserError` if a file cannot be written: a check before the work, not after it.

    A missing folder is no error: `whole` makes it.
    """
    if path is None:
        return
    try:
        if path.is_dir():
            raise UserError(f"{what} {str(path)!r}: is a folder; must be a file")
        if _is_special(path) and path.exists():
            return
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"{what} {str(path)!r}: Permission denied")
    except (OSError, ValueError) as error:
        raise _failure(path, what, error) from None
    _check_ancestors(path.absolute().parent, path, what)


def check_folder(path: Path, what: str) -> None:
    """Raise `UserError` if a folder cannot be made or no file can be written into it."""
    _check_ancestors(path.absolute(), path, what)


def _check_ancestors(folder: Path, path: Path, what: str) -> None:
    """Check the nearest existing folder: `folder` itself, or one above it."""
    try:
        while not folder.exists() and not folder.is_symlink():
            folder = folder.parent
        if folder == path.absolute() and not folder.is_dir():
            raise UserError(f"{what} {str(path)!r}: is a file; must be a folder")
        if not folder.is_dir():
            raise UserError(f"{what} {str(path)!r}: {str(folder)!r} is not a folder")
        # only trying shows what may be written: rights, mounts, folders of the system
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise _failure(path, what, error) from None


def make_folder(path: Path, what: str) -> None:
    """Make a folder and its parents where they are missing; raises `UserError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _failure(path, what, error) from None


@contextmanager
def whole(path: Path, what: str) -> Iterator[Path]:
    """Yield the path of a new file that replaces `path` when the block ends.

    When the block or the disk fails, the new file is removed and `path` is unchanged. Missing
    folders are made. A device or a pipe, such as ``/dev/stdout``, gets the bytes at the end.

    Raises
    ------
    UserError
        When the disk fails.
    """
    scratch: Path | None = None
    try:
        check_destination(path, what)
        special = _is_special(path)
        target = path if special else path.resolve()
        folder = Path(tempfile.gettempdir()) if special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".kvtq-{secrets.token_hex(8)}"
        # made here and not by mkstemp, so that the file has the permissions of any new file
        os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield scratch
        if special:
            with scratch.open("rb") as source, target.open("ab") as device:
                shutil.copyfileobj(source, device)
            return
        if target.exists():
            shutil.copymode(target, scratch)
        _to_disk(scratch)
        scratch.replace(target)
    except OSError as error:
        raise _failure(path, what, error) from None
    finally:
        if scratch is not None:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, what: str) -> None:
    """Write a file, complete or not at all; raises `UserError`."""
    with whole(path, what) as scratch:
        scratch.write_bytes(data)


def write_text(path: Path, text: str, what: str) -> None:
    """Write a file of UTF-8 text, complete or not at all; raises `UserError`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), what)


def json_text(value: Mapping[str, Any], indent: int = 2) -> str:
    """Return JSON text as result files have it; a number that is not finite becomes null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table as CSV text with a line of column names; line ends follow RFC 4180."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` in a block or a decorated function into a `UserError` of one line."""
    try:
        yield
    except OSError as error:
        name = "" if error.filename is None else f" {os.fsdecode(error.filename)!r}"
        raise UserError(f"{what}{name}: {error.strerror or error}") from None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder for files of tools; the folder is removed at the end.

    Raises
    ------
    UserError
        When the folder cannot be made, or writing into the folder fails.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="kvtq-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"temporary folder: {error.strerror or error}") from None
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            # an error of writing names no file
            if error.filename is not None and not str(error.filename).startswith(name):
                raise
            raise UserError(f"temporary folder {name!r}: {error.strerror}") from None


def _is_special(path: Path) -> bool:
    """Return whether a path is a device or a pipe, or a link to one, and no ordinary file."""
    inside = str(path.absolute()).startswith(("/dev/", "/proc/"))
    return inside or (path.exists() and not path.is_file())


def _to_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk, so that its name never appears before them."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _failure(path: Path, what: str, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{what} {str(path)!r}: {reason}")
