"""Pipelined sums of many terms, as the lanes of a key slice need them."""

from __future__ import annotations

from amaranth.hdl import Value

__all__ = ["LEVELS_PER_STAGE", "add_levels", "tree_stages"]

LEVELS_PER_STAGE = 4
"""Adder levels between two pipeline registers."""


def tree_stages(terms: int) -> int:
    """Pipeline stages of a sum of `terms` terms, at least two."""
    levels = (terms - 1).bit_length()
    return -(-levels // LEVELS_PER_STAGE)


def add_levels(terms: list[Value]) -> list[Value]:
    """The levels of an adder tree before one stage's registers; an odd term passes a level."""
    for _ in range(LEVELS_PER_STAGE):
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + ([terms[-1]] if len(terms) % 2 else [])
    return terms
