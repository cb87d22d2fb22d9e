"""A mutant's verdict: the test that notices it, or why none does."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mutants.drawing import Mutant, candidates
from mutants.suites import Imports
from mutants.trial import OUTER, TOO_LONG_S, hardware, run_tests
from mutants.workshop import Workshop

__all__ = ["Judge", "Verdict", "listed_equivalents", "stale_equivalents"]

#: Processor seconds of tests that a mutant may survive; its own test file is asked in any case.
_BUDGET_S = 60
_HARDWARE_S = 1800


def _limit_s(cost: float) -> float:
    """Seconds for tests of so many processor seconds: other work may take most of the machine."""
    return 120 + 12 * cost


#: Reasons by file, class and function, and both texts of the lines.
Equivalents = Mapping[tuple[str, str, str, str], str]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    outcome : "killed", "timed out" (which counts as killed), "survived" or "equivalent"
    by : the test that noticed it, or that did not end; the reason why it is equivalent
    asked : test files that the verdict rests on
    digest : of these files and all that they use
    """

    mutant: Mutant
    outcome: str
    by: str
    asked: tuple[str, ...]
    digest: str

    @property
    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"key": self.mutant.key}


class Judge:
    """Runs tests on mutants in one workshop.

    Parameters
    ----------
    equivalents : mapping
        Reasons by identity, of `listed_equivalents`.
    folder : Path
        Keeps how long tests take, and what the unchanged sources generate.
    """

    def __init__(
        self, equivalents: Equivalents, folder: Path, imports: Imports, workshop: Workshop
    ) -> None:
        self._equivalents, self._folder = equivalents, folder
        self._imports, self._workshop = imports, workshop

    def judge(self, mutant: Mutant) -> Verdict:
        """Ask the tests until one fails."""
        reason = self._equivalents.get(_identity(mutant))
        if reason is not None:
            return self._verdict(mutant, "equivalent", reason, [])
        source = self._workshop.source(mutant.file)
        asked: list[str] = []
        spent = 0.0
        tests = self._imports.tests_of(mutant.file)
        own = [(test, phase) for test in tests[:1] for phase in (0, 1)]
        steps = [*own, None, *((test, 0) for test in tests[1:])]
        try:
            for step in steps:
                if step is None:
                    if self._same_hardware(mutant, source):
                        same = "generates the same Verilog"
                        return self._verdict(mutant, "equivalent", same, asked)
                    continue
                test, phase = step
                before = self._unchanged(mutant.file, source, test, phase)
                seconds, bad = before["seconds"], set(before["bad"])
                cost = sum(time for name, time in seconds.items() if name not in bad)
                if not set(seconds) - bad or (step not in own and spent + cost > _BUDGET_S):
                    continue
                self._change(mutant.file, mutant.apply(source))
                limit_s = _limit_s(cost)
                found = self._workshop.run(run_tests, limit_s, test, phase, seconds, bad)
                if found is None:
                    return self._verdict(mutant, "timed out", f"{test}, {limit_s:.0f} s", [test])
                if found["failure"]:
                    return self._verdict(mutant, "killed", found["failure"], [test])
                asked.append(test)
                spent += cost
        finally:
            self._change(mutant.file, source)
        return self._verdict(mutant, "survived", "", asked)

    def _verdict(self, mutant: Mutant, outcome: str, by: str, asked: list[str]) -> Verdict:
        asked = sorted(set(asked))
        return Verdict(mutant, outcome, by, tuple(asked), self._imports.digest(asked))

    def _change(self, file: str, text: str) -> None:
        if self._workshop.source(file) == text:
            return
        self._workshop.write(file, text)
        if self._imports.compiled(file):
            self._workshop.forget_compiled()

    def _unchanged(self, file: str, source: str, test: str, phase: int) -> dict[str, Any]:
        """How long the tests take on the unchanged sources, and which do not pass there in time."""
        kept = self._folder / f"{Path(test).stem}-{phase}-{self._imports.digest([test])}.json"
        if not kept.is_file():
            self._change(file, source)
            found = self._workshop.run(run_tests, 20 * TOO_LONG_S, test, phase, None, set())
            if not found or (found["failure"] and not found.get("seconds")):
                raise RuntimeError(
                    f"{test} does not run on the unchanged sources; see {self._workshop.log}"
                )
            kept.write_text(json.dumps(found), "utf-8")
        known: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return known

    def _same_hardware(self, mutant: Mutant, source: str) -> bool:
        """The mutant generates what the unchanged sources do, of every block that it is part of."""
        blocks = self._imports.blocks_of(mutant.file)
        if not blocks or not mutant.file.startswith("rtl/"):
            return False
        inner = [block for block in blocks if block not in OUTER]
        inner = [block for block in inner if f"rtl/{block}.py" == mutant.file] or inner
        # most mutants differ at once, where it costs little
        return self._same(mutant, source, inner or blocks, True) and self._same(
            mutant, source, [*inner, *(block for block in blocks if block in OUTER)], False
        )

    def _same(self, mutant: Mutant, source: str, blocks: list[str], one: bool) -> bool:
        rest_on = [*(f"rtl/{block}.py" for block in blocks), "tests/bench_matrix.py"]
        name = f"{Path(mutant.file).stem}-{one:d}-{self._imports.digest(rest_on)}"
        kept = self._folder / f"hardware-{name}.json"
        if not kept.is_file():
            self._change(mutant.file, source)
            found = self._workshop.run(hardware, _HARDWARE_S, blocks, one, None)
            if not found or "failure" in found:
                return False
            kept.write_text(json.dumps(found), "utf-8")
        expected = json.loads(kept.read_text("utf-8"))
        self._change(mutant.file, mutant.apply(source))
        return self._workshop.run(hardware, _HARDWARE_S, blocks, one, expected) == expected


def _identity(mutant: Mutant) -> tuple[str, str, str, str]:
    return mutant.file, mutant.where, mutant.before, mutant.after


def listed_equivalents(path: Path) -> Equivalents:
    """What `equivalent.toml` says."""
    entries = tomllib.loads(path.read_text("utf-8")).get("equivalent", [])
    return {
        (entry["file"], entry["where"], entry["line"], entry["mutant"]): entry["reason"]
        for entry in entries
    }


def stale_equivalents(root: Path, path: Path) -> list[str]:
    """One line for each entry that no mutant of the sources is."""
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
