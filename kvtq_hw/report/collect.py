"""Run the sections, or take their stored results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtq_hw import __version__
from kvtq_hw.contract.files import read_bytes
from kvtq_hw.contract.folders import cache_folder
from kvtq_hw.host.sources import source_digest
from kvtq_hw.report.content import Inputs
from kvtq_hw.report.sections import SECTIONS
from kvtq_hw.report.sections.results import quality_rows

if TYPE_CHECKING:
    from kvtq_hw.host.results import ResultStore

__all__ = ["collect"]

_SECTION = dict[str, Any]


def collect(
    inputs: Inputs, on_section: Callable[[str], None], store: ResultStore | None = None
) -> dict[str, Any]:
    """Return the whole report as plain values.

    Parameters
    ----------
    on_section : called with a section's name before the section is measured
    store : store of sections; None for the store in the user's cache folder
    """

    from kvtq_hw.host.results import ResultStore

    quality_rows(inputs.results)  # unreadable files fail before anything is measured
    if store is None:
        store = ResultStore(cache_folder() / "report" / "sections.sqlite")
    key = {
        "config": inputs.config.digest(),
        "codes": list(map(str, inputs.codes)),
        "model": inputs.model,
        "results": _digest(inputs.results),
        "memory_pj": inputs.memory_pj,
    }
    sections = []
    for name, build in SECTIONS.items():
        on_section(name)
        of_section = key | {"section": name, "sources": source_digest(build.__module__)}
        section = None if name == "tools" else store.get(of_section, _SECTION)  # tools may change
        if section is None:
            if (built := build(inputs)) is None:
                continue
            section = built.as_dict()
            store.put(of_section, section)
        sections.append(section)
    config = inputs.config
    return {
        "title": "Ternary KV-cache attention in hardware",
        "subject": (
            f"Configuration {config.name}: {config.head_dim} elements per head, "
            f"{config.query_group} query heads per KV head, {config.lanes} lanes; model "
            f"{inputs.model}; codes {', '.join(map(str, inputs.codes))}."
        ),
        "version": __version__,
        "config": config.model_dump(),
        "sections": sections,
    }


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.json"), *folder.glob("tables/*.toml"))):
        digest.update(file.name.encode() + b"\0" + read_bytes(file, "result"))
    return digest.hexdigest()
