"""Attention on tensors of the caller's, through a ternary cache that nothing was calibrated for.

Without a calibration there are no centres, no equalizers and no feedback matrices. The largest
element of the keys, and of the values, gives the power of two under which they become integers.
"""

from __future__ import annotations

import math

from torch import Tensor

from golden.attend.backends import GoldenBackend, to_float
from golden.cache.attention_job import AttentionJob
from golden.cache.ternary_cache import TernaryCacheLayer
from golden.causal import causal_mask
from golden.conditioning import Conditioning
from golden.llm.model_support import HeadShape
from golden.llm.models import fitted_config
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import VECTOR_MAX
from kvtq_hw.contract.errors import UserError, warn

__all__ = ["uncalibrated_attention"]


def uncalibrated_attention(
    queries: Tensor, keys: Tensor, values: Tensor, code: CacheCode
) -> Tensor:
    """Compute causal attention in the integers of docs/contract.md, with 1 / sqrt(D) on scores.

    Parameters
    ----------
    queries : float [heads, I, D], of the newest I tokens
    keys, values : float [kv_heads, T, D]; `heads` is a multiple of `kv_heads`
    code : code without feedback or anchors

    Returns
    -------
    float [heads, I, D], in the dtype of the queries. A warning says how many scores saturated.

    Raises
    ------
    UserError
        When the code needs a calibration, or no engine has this head dimension or query group.
    ValueError
        When the shapes do not fit each other, or an element is not finite.
    """
    if code.feedback or code.tiers.anchors:
        raise UserError(
            f"code: {str(code)!r} needs a calibrated model; allowed are codes without feedback and "
            "anchors"
        )
    shapes = tuple(queries.shape), tuple(keys.shape), tuple(values.shape)
    if any(len(shape) != 3 for shape in shapes) or shapes[1] != shapes[2]:
        raise ValueError(
            f"queries, keys and values have shapes {shapes}; must be [heads, I, D] and twice "
            "[kv_heads, T, D]"
        )
    (heads, count, _), (kv_heads, tokens, dim) = shapes[:2]
    if not kv_heads or heads % kv_heads or not 1 <= count <= tokens:
        raise ValueError(
            f"{heads} query heads and {kv_heads} KV heads, queries of {count} of {tokens} tokens; "
            "heads must be a multiple of the KV heads, queries of 1 to all tokens"
        )
    group = HeadShape(kv_heads, heads // kv_heads, dim)
    conditioning = Conditioning(
        rotate=True, key_centre=None, key_exponent=_exponent(keys), value_exponent=_exponent(values)
    )
    backend = GoldenBackend()
    layer = TernaryCacheLayer(fitted_config(group, tokens, kv_heads), code, conditioning, backend)
    stored, _ = layer.update(keys[None], values[None])
    scaled = conditioning.scale_queries(queries[None].unflatten(1, (kv_heads, -1)))
    visible = causal_mask(count, tokens, device=queries.device)[None, None]
    stored.settle(visible)
    attention = backend.attend(AttentionJob(0, scaled, stored, visible))
    if attention.saturated:
        warn(
            f"attention: {int(attention.saturated)} scores saturated: they did not fit the "
            f"engine's {layer.config.score_bits} bits; scale queries or keys down"
        )
    outputs = conditioning.real_outputs(to_float(attention))
    return outputs[0].flatten(0, 1).to(queries.dtype)


def _exponent(x: Tensor) -> int:
    """Return the exponent of the smallest unit in which no element exceeds 16 bits."""
    largest = x.abs().max().item()
    if not math.isfinite(largest):
        raise ValueError(f"keys or values have an element of {largest}; must be finite")
    return math.frexp(largest / VECTOR_MAX)[1]
