"""Check the report of `make demo`: the RTL decoded, and golden model and RTL agree in every bit.

Usage: python scripts/check_demo.py build/demo/decode.json

Print nothing if all is well; otherwise print each problem and exit with status 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvtq_hw.contract.codes import DEFAULT_CODE

CODE = str(DEFAULT_CODE)
NEW_TOKENS = 24
PROMPT_TOKENS = 16


def main() -> int:
    path = Path(sys.argv[1])
    try:
        report = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(f"demo: {path}: {error}", file=sys.stderr)
        return 1
    problems = list(find_problems(report))
    for problem in problems:
        print(f"demo: {path}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def find_problems(report: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each claim of the demo that its report does not bear out."""

    def expect(key: str, description: str, holds: Callable[[Any], bool]) -> Iterator[str]:
        value = report.get(key)
        try:
            good = holds(value)
        except (AttributeError, TypeError):  # a value of another type
            good = False
        if not good:
            yield f"{key} is {value!r}, expected {description}"

    yield from expect("mismatches", "0", lambda n: n == 0)
    yield from expect("outputs_compared", "a positive number", lambda n: n > 0)
    yield from expect("tokens_identical", "true", lambda same: same is True)
    yield from expect("rtl_cycles", "a positive number", lambda n: n > 0)
    yield from expect("memory_bytes_compared", "a positive number", lambda n: n > 0)
    yield from expect("memory_differences", "0", lambda n: n == 0)
    yield from expect("code", repr(CODE), lambda code: code == CODE)
    yield from expect("tokens", f"at least {NEW_TOKENS} tokens", lambda t: len(t) >= NEW_TOKENS)
    yield from expect(
        "context",
        f"at least {PROMPT_TOKENS + NEW_TOKENS - 1} tokens",
        lambda n: n >= PROMPT_TOKENS + NEW_TOKENS - 1,
    )
    yield from expect("text", "some text", lambda text: bool(text.strip()))


if __name__ == "__main__":
    sys.exit(main())
