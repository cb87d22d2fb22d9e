"""Conditioning: centring and rotation of keys, rotation of queries and values.

All of it is exact in real numbers. Keys are centred with one static vector c per KV head: the
softmax does not see that every score of a query is lower by the same ``q.c``. Queries and keys are
rotated together, which keeps their dot products; values are rotated when they are written and
attention outputs, which are weighted sums of values, rotated back (in hardware both are folded into
the projections before and after). Quantization is not exact, and it is what gets better by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from golden.hadamard import hadamard, inverse_hadamard

__all__ = ["Conditioning"]


@dataclass(frozen=True)
class Conditioning:
    """What happens to queries, keys and values of one layer before they are quantized.

    rotate : apply the Hadamard rotation
    key_centre : float [kv_heads, D], subtracted from post-RoPE keys; None leaves keys as they are
    """

    rotate: bool = True
    key_centre: Tensor | None = None

    def condition_keys(self, keys: Tensor) -> Tensor:
        """Centre and rotate keys [batch, kv_heads, tokens, D]; float64 from here on."""
        keys = keys.double()
        if self.key_centre is not None:
            keys = keys - self.key_centre.double()[:, None, :]
        return self._rotated(keys)

    def condition_values(self, values: Tensor) -> Tensor:
        """Rotate values [batch, kv_heads, tokens, D]; float64 from here on."""
        return self._rotated(values.double())

    def condition_queries(self, queries: Tensor) -> Tensor:
        """Rotate queries [..., D]; float64 from here on."""
        return self._rotated(queries.double())

    def restore_outputs(self, outputs: Tensor) -> Tensor:
        """Rotate attention outputs [..., D] back."""
        return inverse_hadamard(outputs) if self.rotate else outputs

    def _rotated(self, x: Tensor) -> Tensor:
        return hadamard(x) if self.rotate else x
