"""Temporary copies of the checkout, in which separate processes run tests on mutants."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

__all__ = ["Workshop", "fork_server"]

#: Libraries that are imported once, in the server that forks the processes; no modules of the
#: checkout.
_WARM = (
    *("amaranth.back.rtlil", "amaranth.lib.wiring", "cocotb_tools.runner", "numba", "pydantic"),
    *("pyosys.libyosys", "pytest", "torch", "transformers.modeling_utils"),
)


def fork_server(libraries: Sequence[str] = _WARM) -> ForkServerContext:
    """Return a context whose processes start with the libraries already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mutants.trial", *libraries])
    return context


class Workshop:
    """A copy of a checkout with caches of its own.

    Parameters
    ----------
    root : Path
        The checkout. Files that git tracks and new files that git does not ignore are copied.
    folder : Path
        Folder of the copy; an older copy is replaced, its caches stay.
    context : ForkServerContext
        Context that starts the processes, from `fork_server`.
    """

    def __init__(self, root: Path, folder: Path, context: ForkServerContext) -> None:
        self._context, self._folder = context, folder
        self._tree, self._cache = folder / "tree", folder / "cache"
        kept = self._tree / "build"
        if kept.is_dir():
            shutil.rmtree(folder / "build", ignore_errors=True)
            kept.rename(folder / "build")
        shutil.rmtree(self._tree, ignore_errors=True)
        for name in _files(root):
            (self._tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, self._tree / name)
        if (folder / "build").is_dir():
            (folder / "build").rename(self._tree / "build")
        tools = Path(os.environ.get("KVTQ_TOOLS", root / ".tools"))
        (self._tree / ".tools").mkdir()  # without the language model, whose tests take minutes
        if (tools / "iverilog").exists():
            (self._tree / ".tools" / "iverilog").symlink_to((tools / "iverilog").resolve())
        for path in (self._cache / "tmp", self._cache / "numba"):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> Path:
        """The file with the output of the latest process."""
        return self._folder / "answer.log"

    def source(self, file: str) -> str:
        """Return the text of a file of the copy."""
        return (self._tree / file).read_text("utf-8")

    def write(self, file: str, text: str) -> None:
        """Replace a file, and delete all generated files that could be stale.

        Python recognizes stale compiled files by second and size only; kept Verilog and results
        are found by lists of sources. Built simulations stay: their key is the Verilog itself.
        """
        path = self._tree / file
        path.write_text(text, "utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        if not file.startswith("golden/"):
            shutil.rmtree(self._tree / "build" / "sim" / "verilog", ignore_errors=True)
        for kept in (self._cache / "kvtq-hw").glob("**/*"):
            if kept.is_file() and kept.suffix != ".so":
                kept.unlink()

    def forget_compiled(self) -> None:
        """Delete what Numba compiled.

        Numba checks a function's own file for changes, not the files of constants that it uses.
        """
        shutil.rmtree(self._cache / "numba", ignore_errors=True)
        (self._cache / "numba").mkdir()

    def run(
        self, action: Callable[..., None], limit_s: float, *arguments: object
    ) -> dict[str, Any] | None:
        """Call a function of `mutants.trial` in a process; return its answer, None after the limit.

        For a process that dies without an answer, the answer is a failure with its exit code.
        """
        answer = self._folder / "answer.json"
        answer.unlink(missing_ok=True)
        process = self._context.Process(
            target=action, args=(self._tree, self._environment(), answer, *arguments)
        )
        process.start()
        process.join(limit_s)
        late = process.is_alive()
        with suppress(ProcessLookupError):  # the simulators it started, and the process if late
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        if late:
            return None
        if not answer.is_file():
            return {"failure": f"the process ended with {process.exitcode}"}
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
        return found

    def _environment(self) -> Mapping[str, str]:
        return {
            "PYTHONPATH": str(self._tree),
            "XDG_CACHE_HOME": str(self._cache),
            "NUMBA_CACHE_DIR": str(self._cache / "numba"),
            "TMPDIR": str(self._cache / "tmp"),
            "KVTQ_TOOLS": str(self._tree / ".tools"),
            "OMP_NUM_THREADS": "1",
            "COCOTB_MAX_FAILURES": "1",
            "KVTQ_REQUIRE": "",
            "PYTHONDONTWRITEBYTECODE": "",
        }


def _files(root: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
