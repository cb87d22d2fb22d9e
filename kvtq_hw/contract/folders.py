"""Folders: the cache of results that take time to compute, and tools outside Python packages."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["cache_folder", "tools_folder"]


def cache_folder() -> Path:
    """Return the user's cache folder of this program: calibrations, simulations, results.

    On Linux the folder is `$XDG_CACHE_HOME/kvtq-hw`. Removing the folder costs only time.
    """
    return platformdirs.user_cache_path("kvtq-hw")


def tools_folder() -> Path | None:
    """Return the folder where `make` puts tools: $KVTQ_TOOLS, or `.tools` of the checkout.

    None if the package was installed without a checkout and the variable is not set.
    """
    if chosen := os.environ.get("KVTQ_TOOLS"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    return checkout / ".tools" if (checkout / "pyproject.toml").is_file() else None
