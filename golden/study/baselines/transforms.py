"""Transforms of the baselines: what happens to keys and values before they are stored.

A transform leaves attention as it was: queries are transformed so that their scores with stored
keys are the real ones, and the sums of stored values are transformed back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from golden.conditioning import Conditioning

__all__ = ["IntegerConditioning", "Rotation", "Transform"]


class Transform(Protocol):
    """Transforms the vectors of one layer, [batch, heads, tokens, D]; all results are float32."""

    def keys(self, x: Tensor) -> Tensor:
        """Transform post-RoPE keys to those that are stored."""
        ...

    def values(self, x: Tensor) -> Tensor:
        """Transform values to those that are stored."""
        ...

    def queries(self, x: Tensor) -> Tensor:
        """Transform post-RoPE queries for scores with stored keys."""
        ...

    def outputs(self, x: Tensor) -> Tensor:
        """Transform weighted sums of stored values back."""
        ...


@dataclass(frozen=True)
class IntegerConditioning:
    """Conditioning as the ternary codes have it; stored vectors are in real units.

    In real units, and not in those of the conditioning's integers, scales fit fp16.
    """

    conditioning: Conditioning

    def keys(self, x: Tensor) -> Tensor:
        """Condition keys."""
        return (self.conditioning.condition_keys(x)[0] * self._key_unit).float()

    def values(self, x: Tensor) -> Tensor:
        """Condition values."""
        return (self.conditioning.condition_values(x)[0] * self._value_unit).float()

    def queries(self, x: Tensor) -> Tensor:
        """Condition queries."""
        conditioned = self.conditioning.condition_queries(self._grouped(x)).flatten(1, 2)
        return conditioned.float() / self._key_unit

    def outputs(self, x: Tensor) -> Tensor:
        """Undo the conditioning of values."""
        outputs = self._grouped(x.double() / self._value_unit)
        return self.conditioning.restore_outputs(outputs).flatten(1, 2).float()

    def _grouped(self, x: Tensor) -> Tensor:
        """Separate the KV heads in [batch, heads, tokens, D]."""
        return x.unflatten(1, (self.conditioning.kv_heads or 1, -1))

    @property
    def _key_unit(self) -> float:
        return 2.0**self.conditioning.key_exponent

    @property
    def _value_unit(self) -> float:
        return 2.0**self.conditioning.value_exponent


@dataclass(frozen=True)
class Rotation:
    """One orthogonal matrix per KV head for keys, one for values: a row vector x becomes ``x R``.

    key_rotations, value_rotations : float32 [kv_heads, D, D]
    """

    key_rotations: Tensor
    value_rotations: Tensor

    def keys(self, x: Tensor) -> Tensor:
        """Rotate keys."""
        return _product(x, self.key_rotations)

    def values(self, x: Tensor) -> Tensor:
        """Rotate values."""
        return _product(x, self.value_rotations)

    def queries(self, x: Tensor) -> Tensor:
        """Rotate queries as the keys of their KV head."""
        return _product(x, self.key_rotations)

    def outputs(self, x: Tensor) -> Tensor:
        """Undo the rotation of values."""
        return _product(x, self.value_rotations.mT)


def _product(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply vectors [batch, heads, tokens, D] by the matrix of their KV head, float32.

    In double precision, so that the rounded result hardly ever depends on the number of tokens.
    """
    grouped = x.double().unflatten(1, (len(matrices), -1))
    return (grouped @ matrices.to(x.device).double()[:, None]).flatten(1, 2).float()
