"""Find tests that did not run, which pytest's exit status does not tell; record durations of tests.

Usage: python scripts/check_tests.py build/test/results.xml

Read the JUnit XML that pytest wrote. Print nothing if all is well; otherwise print each problem on
a line and exit with status 1. A problem is

- a block (a file of sim/benches) whose bench never ran on one of the simulators. Pytest runs the
  bench from the test file of the same name, once per simulator; the test's name contains the
  simulator's name.
- a skipped test, unless the reason is a need of `tests/needs.py` that KVTQ_REQUIRE does not name.

Write durations.txt beside the results: seconds per test file, and of the slowest tests.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvtq_hw.host.toolchain import SIMULATORS

ROOT = Path(__file__).resolve().parent.parent
BENCHES = ROOT / "sim" / "benches"
_SLOWEST = 40

sys.path.insert(0, str(ROOT / "tests"))
from needs import NEEDS, required  # noqa: E402  a module of the tests


def main() -> int:
    path = Path(sys.argv[1])
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
        problems = [*bench_problems(cases), *skip_problems(cases)]
        (path.parent / "durations.txt").write_text(durations(cases), encoding="utf-8")
    except (OSError, ValueError, ElementTree.ParseError) as error:
        problems = [f"{path}: {error}"]
    for problem in problems:
        print(f"tests: {problem}", file=sys.stderr)
    return 1 if problems else 0


def title(case: ElementTree.Element) -> str:
    """Return file and name of a test case."""
    return f"{case.get('classname', '')}::{case.get('name', '')}"


def bench_problems(cases: list[ElementTree.Element]) -> Iterator[str]:
    """Yield one line for each block and simulator on which its bench never ran."""
    blocks = sorted(file.stem for file in BENCHES.glob("[!_]*.py"))
    if not blocks:
        yield f"no bench in {BENCHES}"
    executed: Counter[tuple[str, str]] = Counter()
    for case in cases:
        parameters = re.findall(r"\w+", case.get("name", "").partition("[")[2])
        for simulator in SIMULATORS:
            if simulator in parameters and case.find("skipped") is None:
                parts = case.get("classname", "").split(".")
                executed.update((part.removeprefix("test_"), simulator) for part in parts)
    for block in blocks:
        for simulator in SIMULATORS:
            if not executed[block, simulator]:
                yield f"{block}: no bench ran on {simulator}"


def skip_problems(cases: list[ElementTree.Element]) -> Iterator[str]:
    """Yield one line for each test that was skipped without an allowed reason."""
    allowed = set(NEEDS) - required()
    for case in cases:
        skipped = case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            if reason.partition(":")[0] not in allowed:
                yield f"{title(case)} was skipped: {reason or 'no reason'}"


def durations(cases: list[ElementTree.Element]) -> str:
    """Return seconds per test file, and of the slowest tests, as lines of text."""
    files: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for case in cases:
        seconds = float(case.get("time", 0))
        files[case.get("classname", "")] += seconds  # type: ignore[assignment]
        tests[title(case)] += seconds  # type: ignore[assignment]
    lines = [f"{sum(files.values()):10.1f}  all tests, in seconds of their worker"]
    lines += [f"{seconds:10.1f}  {file}" for file, seconds in files.most_common()]
    lines += ["", "slowest tests"]
    lines += [f"{seconds:10.1f}  {test}" for test, seconds in tests.most_common(_SLOWEST)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
