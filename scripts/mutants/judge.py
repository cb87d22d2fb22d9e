"""Judge a mutant: find a test that notices it, or the reason why none does."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutants.drawing import Mutant, candidates
from mutants.suites import Imports
from mutants.trial import OUTER, hardware, run_tests
from mutants.workshop import Workshop

__all__ = ["Judge", "Verdict", "listed_equivalents", "stale_equivalents"]

#: Limits in processor seconds: per phase of the module's own test file, and for all other files.
_OWN_S, _OTHERS_S = 240.0, 60.0
#: Limit of a process in seconds; tests end long before, unless they hang in compiled code.
_LIMIT_S = 1800
#: Processor seconds that a process takes before its first test.
_START_S = 3.0


#: Why mutants are equivalent, by file, class and function, original lines and mutated lines.
Equivalents = Mapping[tuple[str, str, str, str], str]


@dataclass(frozen=True)
class Verdict:
    """The result of judging a mutant.

    outcome : "killed", "timed out" (which counts as killed), "survived" or "equivalent"
    by : the test that failed or did not end; the reason if the mutant is equivalent
    asked : test files on whose results the verdict rests
    digest : hash of these files and all files that they use
    """

    mutant: Mutant
    outcome: str
    by: str
    asked: tuple[str, ...]
    digest: str

    @property
    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"key": self.mutant.key}


@dataclass(frozen=True)
class _Record:
    """Known facts of a file's tests: processor seconds, and which pass on unchanged sources."""

    path: Path
    seconds: dict[str, float]
    good: list[str]
    bad: list[str]

    @classmethod
    def read(cls, path: Path) -> _Record:
        known = json.loads(path.read_text("utf-8")) if path.is_file() else [{}, [], []]
        return cls(path, *known)

    def add(self, seconds: Mapping[str, float], good: Sequence[str] = (), bad: str = "") -> None:
        self.seconds.update(seconds)
        self.good.extend(name for name in good if name not in self.good)
        self.bad.extend([bad] if bad else [])
        self.path.write_text(json.dumps([self.seconds, self.good, self.bad]), "utf-8")


class Judge:
    """Run tests on mutants in one workshop.

    Parameters
    ----------
    equivalents : mapping
        Reasons by identity, from `listed_equivalents`.
    folder : Path
        Folder that keeps durations of tests and hashes of the Verilog of the unchanged sources.
    """

    def __init__(
        self, equivalents: Equivalents, folder: Path, imports: Imports, workshop: Workshop
    ) -> None:
        self._equivalents, self._folder = equivalents, folder
        self._imports, self._workshop = imports, workshop

    def judge(self, mutant: Mutant) -> Verdict:
        """Run tests on the mutant until one fails, and return the verdict."""
        reason = self._equivalents.get(_identity(mutant))
        if reason is not None:
            return self._verdict(mutant, "equivalent", reason, [])
        source = self._workshop.source(mutant.file)
        asked: list[str] = []
        spent = 0.0
        own, *others = self._imports.tests_of(mutant.file)
        steps = [(own, 0, _OWN_S), (own, 1, _OWN_S), *((test, 0, _OTHERS_S) for test in others)]
        try:
            for test, phase, budget_s in steps:
                if test != own and spent == 0.0 and self._same_hardware(mutant, source):
                    same = "generates the same Verilog"
                    return self._verdict(mutant, "equivalent", same, asked)
                if spent >= budget_s:
                    break
                found = self._ask(mutant, source, test, phase, budget_s - spent)
                if isinstance(found, tuple):
                    return self._verdict(mutant, *found, [test])
                if found:
                    asked.append(test)
                if test != own:
                    spent += found + _START_S
            if not others and self._same_hardware(mutant, source):
                return self._verdict(mutant, "equivalent", "generates the same Verilog", asked)
        finally:
            self._change(mutant.file, source)
        return self._verdict(mutant, "survived", "", asked)

    def _ask(
        self, mutant: Mutant, source: str, test: str, phase: int, budget_s: float
    ) -> tuple[str, str] | float:
        """Run one test file on the mutant.

        Return the outcome and the test that noticed; or, if no test did, the seconds of the tests
        that passed. Only tests that pass on the unchanged sources count: a test that fails for the
        first time is run on the unchanged sources too.
        """
        record = _Record.read(
            self._folder / f"{Path(test).stem}-{self._imports.digest([test])}.json"
        )
        while True:
            arguments = (test, phase, record.seconds, set(record.bad))
            self._change(mutant.file, mutant.apply(source))
            found = self._workshop.run(run_tests, _LIMIT_S, *arguments, None, budget_s)
            if found is not None and not found["failure"]:
                record.add(found["seconds"])
                return sum(max(found["seconds"][name], 0.01) for name in found["passed"])
            failure = test if found is None else found["failure"] or test
            if failure not in record.good:
                self._change(mutant.file, source)
                only = failure if "::" in failure else None
                unchanged = self._workshop.run(run_tests, _LIMIT_S, *arguments, only, budget_s)
                if unchanged is None or (unchanged["failure"] and not unchanged.get("seconds")):
                    raise RuntimeError(
                        f"{test} does not run on the unchanged sources; see {self._workshop.log}"
                    )
                record.add(unchanged["seconds"], unchanged["passed"], unchanged["failure"])
                if not unchanged["failure"]:
                    record.add({}, [failure])
            if failure in record.good:
                late = found is None or found.get("late", False)
                return "timed out" if late else "killed", failure

    def _verdict(self, mutant: Mutant, outcome: str, by: str, asked: list[str]) -> Verdict:
        asked = sorted(set(asked))
        return Verdict(mutant, outcome, by, tuple(asked), self._imports.digest(asked))

    def _change(self, file: str, text: str) -> None:
        if self._workshop.source(file) == text:
            return
        self._workshop.write(file, text)
        if self._imports.compiled(file):
            self._workshop.forget_compiled()

    def _same_hardware(self, mutant: Mutant, source: str) -> bool:
        """Whether the mutant leaves Verilog and manifest of every block with its file unchanged."""
        blocks = self._imports.blocks_of(mutant.file)
        if not blocks or not mutant.file.startswith("rtl/"):
            return False
        inner = [block for block in blocks if block not in OUTER]
        inner = [block for block in inner if f"rtl/{block}.py" == mutant.file] or inner
        # most mutants differ in the first configuration, which is cheap to generate
        return self._same(mutant, source, inner or blocks, True) and self._same(
            mutant, source, [*inner, *(block for block in blocks if block in OUTER)], False
        )

    def _same(self, mutant: Mutant, source: str, blocks: list[str], one: bool) -> bool:
        rest_on = [*(f"rtl/{block}.py" for block in blocks), "tests/bench_matrix.py"]
        name = f"{Path(mutant.file).stem}-{one:d}-{self._imports.digest(rest_on)}"
        kept = self._folder / f"hardware-{name}.json"
        if not kept.is_file():
            self._change(mutant.file, source)
            found = self._workshop.run(hardware, _LIMIT_S, blocks, one, None)
            if not found or "failure" in found:
                return False
            kept.write_text(json.dumps(found), "utf-8")
        expected = json.loads(kept.read_text("utf-8"))
        self._change(mutant.file, mutant.apply(source))
        return self._workshop.run(hardware, _LIMIT_S, blocks, one, expected) == expected


def _identity(mutant: Mutant) -> tuple[str, str, str, str]:
    return mutant.file, mutant.where, mutant.before, mutant.after


def listed_equivalents(path: Path) -> Equivalents:
    """Read the equivalent mutants and their reasons from `equivalent.toml`."""
    entries = tomllib.loads(path.read_text("utf-8")).get("equivalent", [])
    return {
        (entry["file"], entry["where"], entry["line"], entry["mutant"]): entry["reason"]
        for entry in entries
    }


def stale_equivalents(root: Path, path: Path) -> list[str]:
    """Return a line for each entry that matches no mutant of the sources."""
    listed = listed_equivalents(path)
    possible = {
        _identity(mutant)
        for file in {entry[0] for entry in listed}
        if (root / file).is_file()
        for mutant in candidates(root, file)
    }
    return [
        f"{path.name}: {entry[0]}, {entry[1]}: no mutant makes {entry[3]!r} of {entry[2]!r}"
        for entry in listed
        if entry not in possible
    ]
