"""Valid files of every format that a command reads, to spoil in one place each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from tiny_model import prompt, tiny_model
from torch import Tensor

from golden.llm.calibration import Calibration, calibrate, save_calibration
from golden.llm.capture import CaptureBackend
from golden.llm.decoding import decode, make_cache
from golden.study.spectral import fit, save_rotations
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

CONFIG = 'name = "mine"\nhead_dim = 8\nquery_group = 2\nlanes = 4\nmax_context = 64\nblock = 4\n'

TABLE = (
    'code = "balanced:1/1,window=4"\nkey_digits = [3, 2]\nvalue_digits = [1, 2]\nsliding = [8, 0]\n'
)

LIBERTY = """
library (small) {
  nom_voltage : 1.8;
  capacitive_load_unit (1, pf);
  power_lut_template (power) { variable_1 : input_transition_time;
    variable_2 : total_output_net_capacitance; index_1 ("0.1, 0.2"); index_2 ("1, 2"); }
  cell (NOT) { area : 2.5; pin (A) { direction : input; capacitance : 0.01; }
    pin (Y) { direction : output; function : "A'"; internal_power () { related_pin : "A";
      rise_power (power) { values ("1, 2", "3, 4"); } } } }
  cell ("NA2") { area : 4; dont_use : false;
    pin (A) { direction : input; } pin (B) { direction : input; }
    pin (Y) { direction : output; function : "!(A B)"; } }
  cell (DFF) { area : 9; ff (IQ, IQN) { clocked_on : "C"; next_state : "D"; }
    pin (C) { direction : input; } pin (D) { direction : input; }
    pin (Q) { direction : output; function : "IQ"; } }
}
"""


def quality() -> dict[str, Any]:
    """What `kvtq-hw eval --json` writes."""
    row = {
        "code": "balanced:3/2",
        "attention": "float",
        "bits_per_element": 4.2,
        "perplexity": 18.0,
        "perplexity_ratio": 1.01,
        "kld": 0.01,
        "top1_agreement": 0.95,
        "tokens": 100,
        "needle": None,
        "needles": 0,
    }
    return {
        "model": "m",
        "model_fingerprint": "f",
        "text": "t.txt",
        "text_sha256": "t",
        "context": 1024,
        "segments": 8,
        "chunk": 256,
        "config": load_config("tiny").model_dump(),
        "rows": [row, row | {"code": "int4", "needle": 0.5, "needles": 8}],
    }


def recorded() -> dict[str, dict[str, Any]]:
    """What commands write with `--json` for the report, by command."""
    config = load_config("tiny").model_dump()
    energy = dict.fromkeys(("switching_pj", "clock_pj", "internal_pj", "total_pj"), 1.5)
    power = {"toggles": 3, **energy}
    engine = {"name": "INT8", "lanes": 4, "key_planes": 1, "value_planes": 1, "um2": 9.5}
    engine |= {"lane_um2": 1.5, "effective_cycles": 9, "bytes": 8, "quality": None}
    engine |= {"code": "int8", "cycles": 9, "blocks": {"engine": 9.5}, "missed": None}
    family = dict.fromkeys(("lut", "carry", "ff", "lutram", "bram", "dsp"), 1)
    place = dict.fromkeys(("logic_cells", "ff", "bram", "dsp"), 1)
    sweep = {"lanes": 4, "code": "balanced:3/2", "um2": 9.5, "cycles": 9, "bytes": 8}
    found: dict[str, dict[str, Any]] = {
        "compare": {"tokens": 32, "ways": {"equal lanes: 4": [engine]}},
        "fpga": {
            "block": "engine",
            "families": {"ecp5": {"family": "ECP5", **family}},
            "place_and_route": {"ecp5": {"device": "x", "fmax_mhz": 50.5, **place}},
        },
        "power": {
            **{"layer": 0, "head": 0, "step": 0, "tokens": 9, "attentions_per_token": None},
            "variants": {
                "captured": {
                    "config": {"name": "c"},
                    "library": {"name": "l"},
                    "cycles": 9,
                    "slices": {"key": 3, "value": 2},
                    "blocks": {"engine": power},
                    "total": power,
                }
            },
        },
        "sweep": {
            "tokens": 32,
            "rows": [sweep | {"bits_per_element": 4.5, "perplexity_ratio": None}],
        },
        "timing": {
            "library": {"name": "l"},
            "paths": {"total": {"delay_ps": 900.5, "fmax_mhz": 1100.5, "tool": "abc"}},
        },
    }
    head = {"config": config, "sources": "s", "generator": "g"}
    return {
        kind: {"command": f"kvtq-hw {kind} --preset tiny", **head, **data}
        for kind, data in found.items()
    }


def calibration() -> Calibration:
    """That of the tiny model."""
    return calibrate(tiny_model(), prompt(40), tokens=40)


def write_all(folder: Path) -> None:
    """Write a valid file of each format."""
    measured = calibration()
    save_calibration(measured, folder / "calibration.safetensors")
    save_rotations(fit(tiny_model(), 40), folder / "rotations.safetensors", tiny_model())
    backend = CaptureBackend((0,), (1,), (0,))
    config, code = load_config("tiny"), CacheCode.parse("balanced:3/2,sinks=2,window=4")
    decode(tiny_model(), prompt(10), 2, make_cache(config, code, measured, backend))
    backend.captured[0].save(folder / "captured.safetensors")
    (folder / "config.toml").write_text(CONFIG)
    (folder / "table.toml").write_text(TABLE)
    (folder / "cells.lib").write_text(LIBERTY)
    (folder / "quality.json").write_text(json.dumps(quality()))
    (folder / "results").mkdir()
    (folder / "results" / "quality.json").write_text(json.dumps(quality()))
    for kind, data in recorded().items():
        (folder / "results" / f"{kind}.json").write_text(json.dumps(data))


def tensors_of(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and texts of a safetensors file."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def with_tensors(
    file: Path,
    changes: Mapping[str, Callable[[Tensor], Tensor] | None] | None = None,
    texts: Mapping[str, str | None] | None = None,
) -> bytes:
    """A safetensors file with some tensors changed, or left out where the change is None."""
    tensors, metadata = tensors_of(file)
    for name, change in (changes or {}).items():
        if change is None:
            tensors.pop(name, None)
        else:
            tensors[name] = change(tensors.get(name, torch.zeros(1))).contiguous()
    for name, text in (texts or {}).items():
        if text is None:
            metadata.pop(name, None)
        else:
            metadata[name] = text
    return save(tensors, metadata)


def with_item(value: Any, path: str, item: Any) -> Any:
    """Plain values with one place, such as ``rows.0.code``, changed; `...` leaves it out."""
    copy = json.loads(json.dumps(value))
    place = copy
    *parts, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parts:
        place = place[part]
    if item is ...:
        del place[last]
    else:
        place[last] = item
    return copy
