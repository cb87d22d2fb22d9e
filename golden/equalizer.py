"""Equalizing: static factors that give the channels of keys and values more equal sizes.

Channels of keys and values differ in size, on some models a hundredfold. The rotation spreads the
rounding error evenly, as coarsely as the largest channels demand. An equalizer maps keys and values
before they become integers, and undoes this in what reads them:

- A key is divided by one factor per channel, and queries are multiplied by it: no score changes.
- A value is multiplied by an invertible matrix, and attention outputs by the inverse.

A host can fold all of this into the weights of the projections: the factors are equal in the two
channels that rotary position embedding turns together, so they commute with it. Integers, memory
and hardware know nothing of an equalizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Equalizer"]


@dataclass(frozen=True)
class Equalizer:
    """The factors of one layer. All results are float64.

    key_scales : float64 [kv_heads, D], positive: keys are divided by it
    value_basis : float64 [kv_heads, D, D], invertible: a value, as a row, is multiplied by it

    Raises
    ------
    ValueError
        When a scale is not positive, a basis has no inverse, or the shapes do not fit each other.
    """

    key_scales: Tensor
    value_basis: Tensor

    def __post_init__(self) -> None:
        heads, dim = self.key_scales.shape
        if self.value_basis.shape != (heads, dim, dim):
            raise ValueError(
                f"value_basis has shape {tuple(self.value_basis.shape)}, key_scales "
                f"{(heads, dim)} need {(heads, dim, dim)}"
            )
        if not (self.key_scales > 0).all():
            raise ValueError("key_scales: an element is not positive")
        if not torch.isfinite(self._inverse).all():
            raise ValueError("value_basis: a matrix has no inverse")

    @cached_property
    def _inverse(self) -> Tensor:
        inverse, failed = torch.linalg.inv_ex(self.value_basis)
        return inverse.masked_fill(failed.bool()[:, None, None], torch.inf)

    @property
    def kv_heads(self) -> int:
        """Number of KV heads."""
        return len(self.key_scales)

    def keys(self, x: Tensor) -> Tensor:
        """Map post-RoPE keys [..., kv_heads, T, D] to those that are stored."""
        return x.double() / self.key_scales.to(x.device)[:, None]

    def queries(self, x: Tensor) -> Tensor:
        """Map post-RoPE queries [..., kv_heads, G, T, D] to those that read mapped keys."""
        return x.double() * self.key_scales.to(x.device)[:, None, None]

    def values(self, x: Tensor) -> Tensor:
        """Map values [..., kv_heads, T, D] to those that are stored."""
        return x.double() @ self.value_basis.to(x.device)

    def outputs(self, x: Tensor) -> Tensor:
        """Map weighted sums of mapped values back, [..., kv_heads, G, T, D]."""
        return x.double() @ self._inverse.to(x.device)[:, None]

    def projection(self, x: Tensor) -> Tensor:
        """Map output projections [kv_heads, G, out, D] to those that read mapped sums."""
        return x.double() @ self._inverse.to(x.device).mT[:, None]

    def unmapped_keys(self, x: Tensor) -> Tensor:
        """Map stored keys [..., kv_heads, T, D], or their errors, back to the model's own."""
        return x.double() * self.key_scales.to(x.device)[:, None]

    def unmapped_values(self, x: Tensor) -> Tensor:
        """Map stored values [..., kv_heads, T, D], or their errors, back to the model's own."""
        return x.double() @ self._inverse.to(x.device)
