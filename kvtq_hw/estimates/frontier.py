"""Pareto frontier: the points that no other point beats in both of two costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["frontier"]

_Point = TypeVar("_Point")


def frontier(
    points: Iterable[_Point], costs: Callable[[_Point], tuple[float, float]]
) -> list[_Point]:
    """Return the points that no other point beats in both costs, by ascending first cost.

    Of points with equal costs the first counts.

    Parameters
    ----------
    costs : returns the two costs of a point; less is better in both
    """
    best: list[_Point] = []
    for point in sorted(points, key=costs):
        if not best or costs(point)[1] < costs(best[-1])[1]:
            best.append(point)
    return best
