"""Folders: the cache of what takes time to make, and tools that are no Python package."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["cache_folder", "tools_folder"]


def cache_folder() -> Path:
    """Return the folder for what can be made again: calibrations, simulations, measured results.

    It is the user's cache folder of this program, `$XDG_CACHE_HOME/kvtq-hw` on Linux. Removing it
    costs time and nothing else.
    """
    return platformdirs.user_cache_path("kvtq-hw")


def tools_folder() -> Path | None:
    """Return where `make` puts what is no Python package: $KVTQ_TOOLS, or `.tools` of the checkout.

    None where the package was installed without a checkout and the variable is not set.
    """
    if chosen := os.environ.get("KVTQ_TOOLS"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    return checkout / ".tools" if (checkout / "pyproject.toml").is_file() else None
