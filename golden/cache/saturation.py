"""Saturation: elements of keys and values beyond the 16-bit range that calibration chose."""

from __future__ import annotations

from typing import NamedTuple

from transformers import Cache

from golden.cache.layer import StoredLayer

__all__ = ["Saturation", "saturated_words", "saturation"]


class Saturation(NamedTuple):
    """Counts of a cache's saturated elements and of all its elements.

    elements : number of elements beyond the largest or the smallest 16-bit integer
    stored : number of elements of all stored keys and values
    """

    elements: int
    stored: int

    @property
    def share(self) -> float:
        """Saturated elements as a share of the stored elements; zero for an empty cache."""
        return self.elements / self.stored if self.stored else 0.0

    def __str__(self) -> str:
        return saturated_words(self.elements, self.share)


def saturated_words(elements: int, share: float) -> str:
    """Return a message line about saturated elements and their share of all elements."""
    return (
        f"{elements:,} elements of keys and values ({100 * share:.2g} %) saturated: they did not "
        "fit the 16 bits that calibration chose; calibrate on text like this one"
    )


def saturation(cache: Cache) -> Saturation:
    """Count saturated elements over all layers; formats without 16-bit integers have none."""
    layers = [layer for layer in cache.layers if isinstance(layer, StoredLayer)]
    return Saturation(
        sum(getattr(layer, "saturated", 0) for layer in layers),
        sum(layer.stored_elements() for layer in layers),
    )
