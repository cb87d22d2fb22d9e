"""Inputs of a report for tests: the committed results, or one file of a command."""

from __future__ import annotations

import json
from pathlib import Path

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig, load_config
from kvtq_hw.report.content import Inputs, Plot, Series

ROOT = Path(__file__).resolve().parent.parent
TINY = load_config("tiny")
CODES = tuple(map(CacheCode.parse, ("balanced:3/2", "balanced:2/1,sinks=2,window=4")))
INPUTS = Inputs(TINY, CODES, "no model", ROOT / "docs" / "results")
PLOT = Plot(
    "P",
    "measured",
    "c",
    "line",
    "x",
    "y",
    (Series("s", (1.0, 2.0), (3.0, 4.0)),),
    "It rises <here>.",
    log_x=True,
)


def record(folder: Path, kind: str, config: EngineConfig = TINY, **fields) -> Inputs:
    """Inputs of a report whose results hold one file of a command."""
    data = {"command": f"kvtq-hw {kind} --preset x", "config": config.model_dump()} | fields
    (folder / f"{kind}-{config.name}.json").write_text(json.dumps(data))
    return Inputs(TINY, CODES, "m", folder)


def engine_row(name: str, um2: float, cycles: int, perplexity: float | None) -> dict:
    quality = perplexity and {"perplexity_ratio": perplexity, "kld": perplexity - 1}
    row = {"name": name, "um2": um2, "effective_cycles": cycles, "quality": quality}
    row |= {"code": f"code of {name}", "cycles": cycles}
    row |= {"lanes": 4, "lane_um2": 1.0, "bytes": 64, "key_planes": 1, "value_planes": 1}
    return row | {"blocks": {"engine": um2}, "missed": None}
