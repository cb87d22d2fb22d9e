"""Find the test files that can notice a change to a module, nearest first."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

__all__ = ["Imports"]

_FOLDERS = ("golden", "kvtq_hw", "rtl", "sim", "tests")


class Imports:
    """The graph of uses between files of a checkout.

    A file uses the modules that it imports; tests and benches also use the blocks that they name in
    a string. Files are named relative to the checkout.
    """

    def __init__(self, root: Path) -> None:
        paths = [path for folder in _FOLDERS for path in sorted((root / folder).rglob("*.py"))]
        # read all files now: verdicts rest on the sources at the start of the run
        self._texts = {p.relative_to(root).as_posix(): p.read_text("utf-8") for p in paths}
        names = {file: file.removesuffix(".py").replace("/", ".") for file in self._texts}
        self._file_of = {name.removesuffix(".__init__"): file for file, name in names.items()}
        # test modules import each other without the prefix "tests."
        self._file_of |= {name.removeprefix("tests."): file for file, name in names.items()}
        self._blocks = {Path(file).stem for file in self._texts if file.startswith("sim/benches/")}

    @cached_property
    def _uses(self) -> dict[str, set[str]]:
        return {file: set(self._used_by(file)) for file in self._texts}

    def compiled(self, file: str) -> bool:
        """Whether Numba compiles functions of the file, or of a file that may use its constants."""
        users = [file, *(user for user, used in self._uses.items() if file in used)]
        near = {one for user in users for one in (user, *self._uses[user])}
        return any("import numba" in self._texts[one] for one in near)

    def blocks_of(self, file: str) -> list[str]:
        """Return the blocks whose hardware uses a file: the file's own block first."""
        blocks = sorted(self._blocks, key=lambda block: (f"rtl/{block}.py" != file, block))
        return [block for block in blocks if file in self.closure(f"rtl/{block}.py")]

    def tests_of(self, file: str) -> list[str]:
        """Return the test files that use a file, directly or not: its own, then the nearest.

        For hardware and its golden twins, tests of benches come before other tests.
        """
        users: dict[str, set[str]] = {}
        for user, used in self._uses.items():
            for one in used:
                users.setdefault(one, set()).add(user)
        steps, reached = {file: 0}, [file]
        for one in reached:
            for user in sorted(users.get(one, ())):
                if user not in steps:
                    steps[user] = steps[one] + 1
                    reached.append(user)
        own = f"tests/test_{Path(file).stem}.py"
        found = [one for one in reached if one.startswith("tests/test_")]
        benches = {f"tests/test_{block}.py" for block in self._blocks}
        in_benches = file.startswith("rtl/") or Path(file).stem in self._blocks

        def place(test: str) -> tuple[bool, bool, int, str]:
            return test != own, in_benches and test not in benches, steps[test], test

        return sorted(found, key=place)

    def closure(self, file: str) -> set[str]:
        """Return the file and every file that it uses, directly or not."""
        reached = [file]
        for one in reached:
            reached += sorted(self._uses[one] - set(reached))
        return set(reached)

    def digest(self, files: Collection[str]) -> str:
        """Return a hash of the files and all files that they use; empty if a file is missing."""
        if not self._texts.keys() >= set(files):
            return ""
        parts = set().union(*(self.closure(file) for file in files))
        text = "\0".join(f"{part}\0{self._texts[part]}" for part in sorted(parts))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _used_by(self, file: str) -> Iterator[str]:
        named = file.startswith(("tests/", "sim/benches/"))
        for node in ast.walk(ast.parse(self._texts[file])):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and named:
                names = [node.value]
                if node.value in self._blocks:
                    names += [f"rtl.{node.value}", f"sim.benches.{node.value}"]
            yield from (self._file_of[name] for name in names if name in self._file_of)
