"""Zeros in planes: the shares of digits that are zero and of slices that are all zeros.

A zero digit adds nothing, so the select gate of its lane need not switch. The engine could skip a
slice of zeros (the digits that the lanes take in one cycle) if the slice were marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from golden.attend.attention import ATTENTION
from golden.attend.single_precision import SinglePrecisionBackend
from golden.cache.ternary_cache import TernaryCache
from golden.llm.calibration import load_or_calibrate
from golden.llm.decoding import make_cache
from golden.llm.models import LanguageModel
from golden.study.quality import cut_segments, documentation_text
from kvtq_hw.contract.codes import CacheCode, CodeTable
from kvtq_hw.contract.config import EngineConfig

__all__ = ["ZeroShare", "cache_of_text", "zero_shares"]


@dataclass(frozen=True)
class ZeroShare:
    """Zeros in one plane of a layer's keys or values: body tokens of all KV heads.

    layer, tensor, plane : index of the layer, "key" or "value", and index of the plane; plane 0 is
        the least significant plane of a balanced code
    digits : share of digits that are zero
    slices : share of slices that are all zeros, by the number of lanes
    """

    layer: int
    tensor: str
    plane: int
    digits: float
    slices: dict[int, float]


def zero_shares(cache: TernaryCache, lanes: tuple[int, ...]) -> list[ZeroShare]:
    """Count zeros in a filled cache; layers without body tokens have no shares.

    Raises
    ------
    ValueError
        When a number of lanes does not divide the head dimension.
    """
    found = []
    for index, layer in enumerate(cache.layers):
        for tensor, store in (("key", layer.keys), ("value", layer.values)):
            if not store.body.tokens:
                continue
            zero = store.body.planes().digits == 0  # [batch, kv_heads, T, planes, D]
            for n in lanes:
                if zero.shape[-1] % n:
                    raise ValueError(f"lanes: {n} does not divide head_dim {zero.shape[-1]}")
            for plane, of_plane in enumerate(zero.unbind(-2)):
                found.append(
                    ZeroShare(
                        index,
                        tensor,
                        plane,
                        of_plane.double().mean().item(),
                        {n: _all_zero(of_plane, n) for n in lanes},
                    )
                )
    return found


def cache_of_text(
    language_model: LanguageModel, config: EngineConfig, code: CacheCode | CodeTable, tokens: int
) -> TernaryCache:
    """Return a cache after a prefill with the first tokens of Python's documentation."""
    calibration = load_or_calibrate(language_model)
    cache = make_cache(config, code, calibration, SinglePrecisionBackend(), language_model.windows)
    [text] = cut_segments(language_model, documentation_text(), tokens, 1)
    with language_model.attending_with(ATTENTION), torch.inference_mode():
        language_model.model(text[None], past_key_values=cache, logits_to_keep=1)
    return cache


def _all_zero(zero: torch.Tensor, lanes: int) -> float:
    return zero.unflatten(-1, (-1, lanes)).all(-1).double().mean().item()
