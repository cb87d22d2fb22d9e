"""Reads files that other commands wrote with `--json`: numbers too slow to measure for a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtq_hw.contract.config import EngineConfig
from kvtq_hw.contract.errors import UserError, shown
from kvtq_hw.contract.files import parse_json, read_text, validated
from kvtq_hw.report.sections.recorded_files import SCHEMAS

__all__ = ["Recorded", "read_results", "recorded"]


@dataclass(frozen=True)
class Recorded:
    """A file that a command wrote.

    Parameters
    ----------
    config : str
        Name of the measured configuration.
    command : str
        The command and the name of the file.
    data : dict
        Content of the whole file.
    note : str
        Says if the file belongs to other sources of the hardware than today's.
    """

    config: str
    command: str
    data: dict[str, Any]
    note: str


def recorded(folder: Path, kind: str, config: EngineConfig | None = None) -> list[Recorded]:
    """Return the files of ``kvtq-hw KIND`` in a folder: of one configuration if there are any.

    Parameters
    ----------
    config : the configuration; None, and one without files, for those of all configurations

    Raises
    ------
    UserError
        When a file cannot be read or does not match the command's schema.
    """
    from kvtq_hw.host.sources import hardware_digest
    from rtl.blocks import BLOCKS

    found = []
    for name, data in read_results(folder):
        if _kind_of(data) != kind:
            continue
        block = data.get("block")
        known = block is None or block in BLOCKS
        same = known and data.get("sources") == hardware_digest(block)
        found.append(
            Recorded(
                config=data["config"]["name"],
                command=f"{data['command']} (recorded in {name})",
                data=data,
                note="" if same else "Recorded with earlier sources of the hardware.",
            )
        )
    fields = None if config is None else config.model_dump()
    return [entry for entry in found if entry.data["config"] == fields] or found


def read_results(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return names and contents of a folder's result files, checked by their commands' schemas.

    Raises
    ------
    UserError
        When a file cannot be read or does not match the schema of the command that it names.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        place = f"result {str(file)!r}"
        try:
            data = parse_json(read_text(file, "result"))
        except ValueError as error:
            raise UserError(f"{place}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise UserError(f"{place}: {shown(data)} is not allowed; must be an object")
        if schema := SCHEMAS.get(_kind_of(data)):
            validated(schema, data, place)
        found.append((file.name, data))
    return found


def _kind_of(data: Mapping[str, Any]) -> str:
    """Return the command that wrote a file; empty for files of other benchmarks."""
    words = str(data.get("command", "")).split(maxsplit=2)
    return words[1] if words[:1] == ["kvtq-hw"] and len(words) == 3 else ""
