"""Yosys as a library (pyosys), run in a process of its own.

The separate process isolates Yosys's global counters (and with them generated names), its log and
its way of ending the program at an error: the same commands on the same files give the same bytes,
whatever ran before.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from kvtq_hw.contract.errors import UserError

__all__ = ["YosysError", "run_yosys", "yosys_version"]

# On Linux the process also ends when its parent is killed.
_DRIVER = """
import sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
from pyosys import libyosys as ys
design = ys.Design()
for command in sys.argv[1:]:
    ys.run_pass(command, design)
"""


class YosysError(UserError, RuntimeError):
    """A Yosys command failed; the message has the last error, or line, of its log."""


def yosys_version() -> str:
    """Return the version of the Yosys library, for example ``0.70``."""
    return metadata.version("pyosys")


def run_yosys(commands: Sequence[str], directory: Path) -> str:
    """Run Yosys commands on one design and return the log.

    Parameters
    ----------
    commands : sequence of str
        One Yosys command each, for example ``"read_rtlil in.il"``.
    directory : Path
        Working directory: file names in commands are relative to it.

    Raises
    ------
    YosysError
        When a command fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, *commands],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")]
        reason = (errors or lines or ["it wrote nothing"])[-1].removeprefix("ERROR: ")
        raise YosysError(f"yosys ended with status {done.returncode}: {reason}")
    return done.stdout
