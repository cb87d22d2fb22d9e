"""Compiler launcher that compiles Verilator's runtime library once for all builds.

Verilator's makefiles put ``$(OBJCACHE)`` before every compiler call. The runtime library depends on
the tool and the flags only, yet takes most of a small design's build time.

Usage: ``python object_cache.py <cache folder> <compiler> <arguments...>``
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["launcher"]


def launcher(folder: Path) -> str:
    """Return an OBJCACHE that keeps objects in `folder`, in one folder per version of the tool."""
    return f"{sys.executable} {Path(__file__).resolve()} {folder.resolve()}"


def _run(folder: Path, command: list[str]) -> int:
    """Run a compile command, or copy the object that the same command compiled earlier."""
    source = Path(command[-1])
    if not source.is_absolute() or not source.name.startswith("verilated"):
        return subprocess.call(command)
    output = Path(command[command.index("-o") + 1])
    cached = folder / f"{hashlib.sha256(chr(0).join(command).encode()).hexdigest()[:16]}.o"
    if not cached.is_file():
        if status := subprocess.call(command):
            return status
        folder.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        shutil.copy(output, partial)
        partial.rename(cached)  # atomic: several builds may run at once
    else:
        shutil.copy(cached, output)
    return 0


if __name__ == "__main__":
    sys.exit(_run(Path(sys.argv[1]), sys.argv[2:]))
