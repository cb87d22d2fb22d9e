"""The driver in C: its files as text, for those who write or compile them.

`sim.host.driver` and `sim.host.descriptors` are the same in Python.
"""

from __future__ import annotations

from importlib import resources

__all__ = ["c_driver"]


def c_driver() -> dict[str, str]:
    """Return the texts of the driver's files by name; they include ``kvtq_registers.h``."""
    folder = resources.files("sim.host") / "c"
    names = ("kvtq_driver.h", "kvtq_driver.c")
    return {name: (folder / name).read_text("utf-8") for name in names}
