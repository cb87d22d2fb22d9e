"""Tools: versions of the tools behind the numbers."""

from __future__ import annotations

import platform
from importlib import metadata

from kvtq_hw import __version__
from kvtq_hw.contract.errors import UserError
from kvtq_hw.host.toolchain import SIMULATORS
from kvtq_hw.report.content import Inputs, Section, Table

__all__ = ["build"]

PACKAGES = ("amaranth", "cocotb", "pyosys", "numba", "numpy", "torch", "transformers", "matplotlib")


def build(inputs: Inputs) -> Section:
    """List versions of Python, this distribution, its main libraries and installed simulators."""
    rows = [("kvtq-hw", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    for name, find in SIMULATORS.items():
        try:
            rows.append((name, find().version))
        except UserError:
            rows.append((name, "not installed"))
    return Section(
        "Tools",
        "Pinned versions are in constraints.txt; the same ones give the same numbers.",
        (Table("Versions", "measured", "pip freeze", ("tool", "version"), tuple(rows)),),
    )
