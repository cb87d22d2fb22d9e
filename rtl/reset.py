"""Kinds of reset that the emitted Verilog can have."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Reset"]


class Reset(StrEnum):
    """Whether the reset needs a clock edge to act, and at which level it acts.

    A reset must be active for at least one clock edge, and must end synchronously to the clock: an
    asynchronous one too.
    """

    SYNC_HIGH = "sync-high"
    SYNC_LOW = "sync-low"
    ASYNC_HIGH = "async-high"
    ASYNC_LOW = "async-low"

    @property
    def synchronous(self) -> bool:
        """Whether the reset acts at clock edges alone."""
        return self.value.startswith("sync")

    @property
    def active(self) -> str:
        """The level at which the reset acts, ``"high"`` or ``"low"``."""
        return self.value.partition("-")[2]

    @property
    def port(self) -> str:
        """Name of the reset's port in Verilog."""
        return "rst" if self.active == "high" else "rst_n"
