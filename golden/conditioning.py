"""Conditioning: centring and rotation of keys, rotation of queries and values, in integers.

An equalizer (`golden.equalizer`) may make the channels of keys and values more equal. Then they
become 16-bit integers under one static power of two per layer and side, which calibration finds.
All later steps are exact:

- Keys are centred with one static integer vector c per KV head. This lowers every score of a query
  by the same ``q.c``, which the softmax cancels.
- Keys and values are rotated by an unnormalised Hadamard transform of size n, the largest power of
  two that divides D. The transform adds log2 n bits.
- Queries are rotated too, which keeps dot products up to the factor n.
- Attention outputs, which are weighted sums of values, are rotated back.

The factors n and the static exponents are powers of two, so they go into the exponents of queries
and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golden.compiled import Array, compiled
from golden.equalizer import Equalizer
from golden.feedback import Feedback
from golden.hadamard import hadamard, inverse_hadamard
from kvtq_hw.contract.config import VECTOR_MAX

__all__ = ["Conditioning", "to_integers"]


def to_integers(x: Tensor, exponent: int) -> tuple[Tensor, int]:
    """Round ``x * 2**-exponent`` to 16 bits, symmetric; return int64 and the saturation count.

    Raises
    ------
    ValueError
        When an element is not finite.
    """
    exact = np.ascontiguousarray(x.double().numpy(force=True))
    integers = np.empty(exact.shape, np.int64)  # creating a tensor costs more than rounding a token
    saturated = _round(exact.reshape(-1), 2.0**-exponent, integers.reshape(-1))
    if saturated < 0:
        raise ValueError("x holds an element that is not finite")
    return torch.from_numpy(integers).to(x.device), saturated


@compiled(
    x=Array(np.float64, "elements"),
    factor=float,
    integers=Array(np.int64, "elements", written=True),
)
def _round(x, factor, integers):
    """Round half to even; return the saturation count, or -1 when an element is not finite."""
    saturated = 0
    for i in range(x.shape[0]):
        if not np.isfinite(x[i]):
            return -1
        rounded = np.rint(x[i] * factor)
        if abs(rounded) > VECTOR_MAX:
            saturated += 1
            rounded = np.copysign(VECTOR_MAX, rounded)
        integers[i] = int(rounded)
    return saturated


@dataclass(frozen=True)
class Conditioning:
    """Conditions queries, keys and values of one layer before they are quantized.

    rotate : apply the Hadamard rotation
    key_centre : int64 [kv_heads, D] in units of ``2**key_exponent``, 16-bit, subtracted from
        post-RoPE keys; None subtracts nothing
    key_exponent, value_exponent : unit exponents: a key is ``integer * 2**key_exponent``, a value
        ``integer * 2**value_exponent``
    key_feedback, value_feedback : matrices for rounding with feedback, or None
    anchor_thresholds : int64 [kv_heads], hits that make a token an anchor, or None
    equalizer : maps keys and values before they become integers; None maps nothing
    """

    rotate: bool
    key_centre: Tensor | None
    key_exponent: int
    value_exponent: int
    key_feedback: Feedback | None = None
    value_feedback: Feedback | None = None
    anchor_thresholds: Tensor | None = None
    equalizer: Equalizer | None = None

    @property
    def kv_heads(self) -> int | None:
        """Number of KV heads of what is static; None where nothing is."""
        if self.equalizer is not None:
            return self.equalizer.kv_heads
        feedback = [x.shift for x in (self.key_feedback, self.value_feedback) if x is not None]
        static = [*feedback, *([] if self.key_centre is None else [self.key_centre])]
        return static[0].shape[0] if static else None

    def integer_keys(self, keys: Tensor) -> tuple[Tensor, int]:
        """Convert keys [batch, kv_heads, tokens, D] to the 16-bit integers that hardware gets.

        Returns
        -------
        The integers, neither centred nor rotated, and the number of saturated elements
        """
        mapped = keys if self.equalizer is None else self.equalizer.keys(keys)
        return to_integers(mapped, self.key_exponent)

    def integer_values(self, values: Tensor) -> tuple[Tensor, int]:
        """Convert values as `integer_keys` converts keys."""
        mapped = values if self.equalizer is None else self.equalizer.values(values)
        return to_integers(mapped, self.value_exponent)

    def centred(self, integers: Tensor) -> Tensor:
        """Subtract the centres from integer keys [batch, kv_heads, tokens, D]."""
        if self.key_centre is None:
            return integers
        return integers - self.key_centre[:, None, :].to(integers.device)

    def condition_keys(self, keys: Tensor) -> tuple[Tensor, int]:
        """Convert keys [batch, kv_heads, tokens, D] to integers, centred and rotated.

        Returns
        -------
        The integers, at most ``conditioned_max`` of the configuration in magnitude, and the number
        of saturated elements
        """
        integers, saturated = self.integer_keys(keys)
        return self.rotated(self.centred(integers)), saturated

    def condition_values(self, values: Tensor) -> tuple[Tensor, int]:
        """Convert values [batch, kv_heads, tokens, D] to integers, rotated.

        Returns
        -------
        The integers, and the number of saturated elements
        """
        integers, saturated = self.integer_values(values)
        return self.rotated(integers), saturated

    def scale_queries(self, queries: Tensor) -> Tensor:
        """Map queries [..., kv_heads, G, T, D] and multiply them by ``2**key_exponent / n``.

        Returns
        -------
        float64 of the same shape, not rotated yet
        """
        mapped = queries.double() if self.equalizer is None else self.equalizer.queries(queries)
        return mapped * (2.0**self.key_exponent / self._growth(queries))

    def condition_queries(self, queries: Tensor) -> Tensor:
        """Scale and rotate queries, so that dot products with conditioned keys are the real ones.

        Returns
        -------
        float64 [..., kv_heads, G, T, D], as the queries
        """
        return self.rotated(self.scale_queries(queries))

    def rotated_back(self, outputs: Tensor) -> Tensor:
        """Undo the rotation in weighted sums of conditioned values, float64 [..., D]."""
        return inverse_hadamard(outputs) if self.rotate else outputs

    def real_outputs(self, outputs: Tensor) -> Tensor:
        """Convert rotated-back outputs [..., kv_heads, G, T, D] to real numbers, float64."""
        outputs = outputs * 2.0**self.value_exponent
        return outputs if self.equalizer is None else self.equalizer.outputs(outputs)

    def restore_outputs(self, outputs: Tensor) -> Tensor:
        """Convert weighted sums of conditioned values [..., kv_heads, G, T, D] to real outputs."""
        return self.real_outputs(self.rotated_back(outputs))

    def rotated(self, x: Tensor) -> Tensor:
        """Rotate vectors [..., D] if this layer rotates; the dtype stays the same."""
        return hadamard(x) if self.rotate else x

    def _growth(self, x: Tensor) -> int:
        dim = x.shape[-1]
        return dim & -dim if self.rotate else 1
