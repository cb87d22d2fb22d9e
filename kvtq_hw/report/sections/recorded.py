"""What other commands wrote with `--json`: numbers that take too long to measure for a page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtq_hw.config import EngineConfig
from kvtq_hw.errors import UserError

__all__ = ["Recorded", "recorded"]


@dataclass(frozen=True)
class Recorded:
    """What a command wrote.

    Parameters
    ----------
    config : str
        Name of the configuration it was measured on.
    command : str
        The command, and the file.
    data : dict
        All of the file.
    note : str
        Says when it belongs to other sources of the hardware than those of today.
    """

    config: str
    command: str
    data: dict[str, Any]
    note: str


def recorded(folder: Path, kind: str, config: EngineConfig) -> list[Recorded]:
    """Files of ``kvtq-hw KIND`` in a folder: those of a configuration, or else all of them.

    Raises
    ------
    UserError
        When a file cannot be read.
    """
    from rtl.blocks import hardware_digest

    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            data = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"results: {str(file)!r} cannot be read: {error}") from None
        if not str(data.get("command", "")).startswith(f"kvtq-hw {kind} "):
            continue
        same = data.get("sources") == hardware_digest(data.get("block"))
        found.append(
            Recorded(
                config=data["config"]["name"],
                command=f"{data['command']} (recorded in {file.name})",
                data=data,
                note="" if same else "Recorded with earlier sources of the hardware.",
            )
        )
    fields = config.model_dump()
    return [entry for entry in found if entry.data["config"] == fields] or found
