"""Check that the benches of every block ran on every simulator: a skipped bench has not passed.

Usage: python scripts/check_benches.py build/test/results.xml

Reads the JUnit XML that pytest wrote. A block is a file of sim/benches; pytest runs it from the
test file of the same name, once for each simulator, whose name stands in the test's. Silent if all
is well; else names what is not, with exit status 1.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kvtq_hw.toolchain import SIMULATORS

BENCHES = Path(__file__).resolve().parent.parent / "sim" / "benches"


def main() -> int:
    path = Path(sys.argv[1])
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        print(f"benches: {path}: {error}", file=sys.stderr)
        return 1
    problems = list(find_problems(cases))
    for problem in problems:
        print(f"benches: {problem}", file=sys.stderr)
    return 1 if problems else 0


def find_problems(cases: list[ElementTree.Element]) -> Iterator[str]:
    """Yield one line for each bench that was skipped, and each block that a simulator never saw."""
    blocks = sorted(file.stem for file in BENCHES.glob("[!_]*.py"))
    if not blocks:
        yield f"no bench in {BENCHES}"
    executed: Counter[tuple[str, str]] = Counter()
    for case in cases:
        name, test_file = case.get("name", ""), case.get("classname", "").split(".")
        parameters = re.findall(r"\w+", name.partition("[")[2])
        for simulator in SIMULATORS:
            if simulator not in parameters:
                continue
            if case.find("skipped") is not None:
                yield f"{'.'.join(test_file)}::{name} was skipped"
                continue
            executed.update((part.removeprefix("test_"), simulator) for part in test_file)
    for block in blocks:
        for simulator in SIMULATORS:
            if not executed[block, simulator]:
                yield f"{block}: no bench ran on {simulator}"


if __name__ == "__main__":
    sys.exit(main())
