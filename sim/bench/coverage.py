"""Functional coverage of a constrained-random bench.

A bench declares points, their bins and crosses of points in one place, with a sentence for each.
The bench samples them while it runs and ends with `Coverage.finish`, which fails if a bin was never
hit. cocotb-coverage counts the hits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cocotb_coverage.coverage import CoverCross, CoverPoint, coverage_db

from sim.bench.scoreboard import Mismatch

__all__ = ["TABLE", "Coverage", "Cross", "Point"]

#: Name of the table that `Coverage.finish` writes.
TABLE = "coverage.md"


@dataclass(frozen=True)
class Point:
    """A coverage point: a property of the stimulus or the design with several bins.

    name : unique within its bench
    meaning : a sentence
    bins : the bins, each with a sentence
    """

    name: str
    meaning: str
    bins: Mapping[str, str]


@dataclass(frozen=True)
class Cross:
    """A cross of points: every combination of their bins must be hit.

    name : unique within its bench
    meaning : a sentence
    points : names of points
    impossible : impossible combinations, each with the reason; None stands for every bin
    """

    name: str
    meaning: str
    points: tuple[str, ...]
    impossible: Mapping[tuple[str | None, ...], str] = field(default_factory=dict)


class Coverage:
    """Points and crosses of one bench; hits accumulate over all tests of the process.

    Parameters
    ----------
    bench : name of the bench
    points, crosses : points and crosses whose bins must all be hit

    Raises
    ------
    ValueError
        When a name is used twice, or a cross names an unknown point.
    """

    def __init__(self, bench: str, points: Sequence[Point], crosses: Sequence[Cross] = ()) -> None:
        names = [*(point.name for point in points), *(cross.name for cross in crosses)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated or bench in coverage_db:
            raise ValueError(f"coverage of {bench} is declared twice: {repeated or bench}")
        self._bench = bench
        self._points = {point.name: point for point in points}
        self._crosses = {cross.name: cross for cross in crosses}
        self._count: dict[str, Callable[[object], None]] = {}
        for point in points:
            self._count[point.name] = CoverPoint(self._path(point.name), bins=list(point.bins))(
                _nothing
            )
        for cross in crosses:
            unknown = [name for name in cross.points if name not in self._points]
            if unknown:
                raise ValueError(f"coverage of {bench}: cross {cross.name} has no point {unknown}")
            self._count[cross.name] = CoverCross(
                self._path(cross.name),
                items=[self._path(name) for name in cross.points],
                ign_bins=list(cross.impossible),
            )(_nothing)

    def sample(self, **bins: str) -> None:
        """Count a bin of each named point, and of each cross whose points are all named.

        Raises
        ------
        ValueError
            For a point or a bin that is not declared, or a combination declared impossible.
        """
        for name, value in bins.items():
            if name not in self._points or value not in self._points[name].bins:
                raise ValueError(f"coverage of {self._bench} has no bin {name}={value}")
            self._count[name](value)
        for cross in self._crosses.values():
            if all(name in bins for name in cross.points):
                self._count[cross.name](None)
                found = tuple(bins[name] for name in cross.points)
                if found not in self._hits(cross.name):
                    raise ValueError(
                        f"coverage of {self._bench}: {cross.name} {found} is said to be impossible"
                    )

    def finish(self, folder: Path) -> None:
        """Write the table of hits into a folder, as `TABLE`, and check that every bin was hit.

        Raises
        ------
        sim.bench.scoreboard.Mismatch
            When bins were not hit; the message is one line that names them.
        """
        (folder / TABLE).write_text("\n".join(self._lines()) + "\n", encoding="utf-8")
        bins = [
            (f"{name}={_text(bin_)}", hits)
            for name in (*self._points, *self._crosses)
            for bin_, hits in self._hits(name).items()
        ]
        missing = [name for name, hits in bins if not hits]
        if missing:
            raise Mismatch(
                f"coverage of {self._bench}: {len(missing)} of {len(bins)} bins were not hit: "
                f"{', '.join(missing)}"
            )

    def _path(self, name: str) -> str:
        return f"{self._bench}.{name}"

    def _hits(self, name: str) -> Mapping[str | tuple[str, ...], int]:
        """Return hits by bin for a point, by combination for a cross."""
        hits: Mapping[str | tuple[str, ...], int] = coverage_db[self._path(name)].detailed_coverage
        return hits

    def _lines(self) -> Iterator[str]:
        """Yield the lines of the table, in Markdown."""
        yield f"# Coverage of {self._bench}"
        for point in self._points.values():
            yield from ("", f"## {point.name}", "", point.meaning, "")
            yield from ("| bin | hits | |", "|---|---:|---|")
            for name, hits in self._hits(point.name).items():
                yield f"| {name} | {hits} | {point.bins[str(name)]} |"
        for cross in self._crosses.values():
            yield from ("", f"## {cross.name}", "", cross.meaning, "")
            yield from (f"| {', '.join(cross.points)} | hits |", "|---|---:|")
            for bins, hits in self._hits(cross.name).items():
                yield f"| {_text(bins)} | {hits} |"
            if cross.impossible:
                yield ""
            for some, reason in cross.impossible.items():
                yield f"- impossible: {', '.join(name or 'any' for name in some)}: {reason}"


def _nothing(value: object) -> None:
    """Do nothing: the function that the library's counters decorate."""


def _text(bins: str | tuple[str, ...]) -> str:
    return bins if isinstance(bins, str) else " x ".join(bins)
