"""Functional coverage: a hole fails, what is not declared is refused, the table tells the hits."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import pytest

from sim.bench.coverage import TABLE, Coverage, Cross, Point
from sim.bench.scoreboard import Mismatch

_numbers = count()

ERROR = Point(
    "error", "What the memory says.", {"read": "A read fails.", "write": "A write fails."}
)
STATE = Point("state", "Where the job is.", {"waits": "It is queued.", "runs": "It is not."})
BOTH = Cross("both", "Each error in each state.", ("error", "state"))


def coverage(*crosses: Cross) -> Coverage:
    """Counts of its own: cocotb-coverage keeps them by name for the whole process."""
    return Coverage(f"example{next(_numbers)}", [ERROR, STATE], crosses)


def hole(covered: Coverage, folder: Path) -> str:
    """What `finish` says is missing."""
    with pytest.raises(Mismatch) as caught:
        covered.finish(folder)
    return re.sub(r"^coverage of example\d+: ", "", str(caught.value))


def test_everything_hit(tmp_path: Path) -> None:
    covered = coverage(BOTH)
    for error in ERROR.bins:
        for state in STATE.bins:
            covered.sample(error=error, state=state)
    covered.finish(tmp_path)


def test_a_hole_names_the_bins(tmp_path: Path) -> None:
    covered = coverage(BOTH)
    covered.sample(error="read", state="waits")
    covered.sample(error="read", state="runs")
    assert hole(covered, tmp_path) == (
        "3 of 8 bins were not hit: error=write, both=write x waits, both=write x runs"
    )


def test_points_sampled_apart_are_no_combination(tmp_path: Path) -> None:
    covered = coverage(BOTH)
    for error in ERROR.bins:
        covered.sample(error=error)
    for state in STATE.bins:
        covered.sample(state=state)
    missing = ("read x waits", "read x runs", "write x waits", "write x runs")
    assert hole(covered, tmp_path) == (
        f"4 of 8 bins were not hit: {', '.join(f'both={name}' for name in missing)}"
    )


def test_impossible_combinations_are_no_holes_and_no_hits(tmp_path: Path) -> None:
    impossible = {("write", None): "Nothing is written."}
    covered = coverage(Cross("both", "Each error in each state.", BOTH.points, impossible))
    covered.sample(error="write")
    covered.sample(error="read", state="waits")
    covered.sample(error="read", state="runs")
    covered.finish(tmp_path)
    with pytest.raises(ValueError, match=r"both \('write', 'runs'\) is said to be impossible$"):
        covered.sample(error="write", state="runs")


def test_the_table_says_everything(tmp_path: Path) -> None:
    impossible = {("write", None): "Nothing is written."}
    covered = coverage(Cross("both", "Each error in each state.", BOTH.points, impossible))
    covered.sample(error="read", state="runs")
    covered.sample(error="read")
    hole(covered, tmp_path)
    assert (tmp_path / TABLE).read_text().splitlines()[1:] == [
        *("", "## error", "", "What the memory says.", ""),
        *("| bin | hits | |", "|---|---:|---|"),
        *("| read | 2 | A read fails. |", "| write | 0 | A write fails. |"),
        *("", "## state", "", "Where the job is.", ""),
        *("| bin | hits | |", "|---|---:|---|"),
        *("| waits | 0 | It is queued. |", "| runs | 1 | It is not. |"),
        *("", "## both", "", "Each error in each state.", ""),
        *("| error, state | hits |", "|---|---:|"),
        *("| read x waits | 0 |", "| read x runs | 1 |"),
        *("", "- impossible: write, any: Nothing is written."),
    ]


@pytest.mark.parametrize("sample", [{"error": "late"}, {"moment": "read"}])
def test_what_is_not_declared_is_refused(sample: dict[str, str]) -> None:
    (name, value), *_ = sample.items()
    with pytest.raises(ValueError, match=rf"^coverage of example\d+ has no bin {name}={value}$"):
        coverage().sample(**sample)


def test_declared_twice() -> None:
    twice = [ERROR, STATE, ERROR]
    with pytest.raises(ValueError, match=r"^coverage of twice is declared twice: \['error'\]$"):
        Coverage("twice", twice)
    Coverage("once", [ERROR])
    with pytest.raises(ValueError, match=r"^coverage of once is declared twice: once$"):
        Coverage("once", [ERROR])


def test_a_cross_of_an_unknown_point() -> None:
    with pytest.raises(ValueError, match=r"cross both has no point \['state'\]$"):
        Coverage("unknown", [ERROR], [BOTH])
