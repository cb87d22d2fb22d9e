"""Pipelined adder trees, which sum the products of a key slice's lanes."""

from __future__ import annotations

from amaranth.hdl import Value

__all__ = ["LEVELS_PER_STAGE", "add_levels", "tree_stages"]

LEVELS_PER_STAGE = 4
"""Adder levels between two pipeline registers."""


def tree_stages(terms: int) -> int:
    """Return the number of pipeline stages that sum `terms` (>= 2) operands."""
    levels = (terms - 1).bit_length()
    return -(-levels // LEVELS_PER_STAGE)


def add_levels(terms: list[Value]) -> list[Value]:
    """Add terms pairwise, through the adder levels of one pipeline stage.

    A level with an odd number of terms passes its last term on unchanged.
    """
    for _ in range(LEVELS_PER_STAGE):
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + ([terms[-1]] if len(terms) % 2 else [])
    return terms
