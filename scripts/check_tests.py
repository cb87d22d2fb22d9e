"""Check which tests did not run, of which pytest's exit status says nothing; record their times.

Usage: python scripts/check_tests.py build/test/results.xml

Reads the JUnit XML that pytest wrote. Silent if all is well; else names each problem on a line,
with exit status 1:

- a block, a file of sim/benches, whose bench a simulator never ran. Pytest runs the bench from the
  test file of the same name, once for each simulator, whose name stands in the test's.
- a test that was skipped for another reason than a need of `tests/needs.py` that KVTQ_REQUIRE does
  not name.

Beside the results it writes durations.txt: seconds per test file, and of the slowest tests.
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
    """File and name of a test case."""
    return f"{case.get('classname', '')}::{case.get('name', '')}"


def bench_problems(cases: list[ElementTree.Element]) -> Iterator[str]:
    """Yield one line for each block that a simulator never saw."""
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
    """Yield one line for each test that was skipped without a reason that counts."""
    allowed = set(NEEDS) - required()
    for case in cases:
        skipped = case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "")
            if reason.partition(":")[0] not in allowed:
                yield f"{title(case)} was skipped: {reason or 'no reason'}"


def durations(cases: list[ElementTree.Element]) -> str:
    """Seconds per test file, and of the slowest tests, as lines of text."""
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
