"""Cycles of one job on the engine, from its shape alone.

The model is exact for an engine that starts idle and whose streams never wait: tests hold it equal
to the RTL's own counter. No data enters it, since the engine's timing depends on none.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtq_hw.codes import CacheCode
from kvtq_hw.config import EngineConfig

__all__ = ["bound_cycles", "code_bound", "code_job_cycles", "job_cycles", "uniform_job_cycles"]

# Latencies of the datapath, in cycles; tests tie each to the block that has it.
_ADDER_LEVELS_PER_STAGE = 4
_PLANE_SCALER = 4
_SOFTMAX = 7  # last score of a block, or last weight of the one before, to the first weight
_WEIGHT_SCALER = 3
_NORMALIZER = 2


def bound_cycles(config: EngineConfig, tokens: int, key_planes: int, value_planes: int) -> int:
    """Cycles at one plane slice a cycle, which none can beat: T (N_k + N_v) ceil(D / lanes)."""
    return tokens * (key_planes + value_planes) * config.slices


def uniform_job_cycles(
    config: EngineConfig, tokens: int, key_planes: int, value_planes: int
) -> int:
    """Cycles of a job whose keys all have `key_planes` planes and whose values `value_planes`."""
    full, rest = divmod(tokens, config.block)
    blocks = [config.block] * full + [rest] * (rest > 0)
    return job_cycles(
        config,
        [n * key_planes * config.slices for n in blocks],
        [n * value_planes * config.slices for n in blocks],
    )


def code_bound(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """`bound_cycles` of a context in a code, its tiers in their own digits."""
    tier, digits = code.tier_tokens(tokens), code.tier_digits(config.max_planes)
    body = bound_cycles(config, tokens - tier, code.key_digits, code.value_digits)
    return body + bound_cycles(config, tier, digits, digits)


def code_job_cycles(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """`job_cycles` of a context in a code, its tiers in their own digits."""
    slices = []
    for digits in (code.key_digits, code.value_digits):
        planes = code.planes(digits, tokens, config.max_planes)
        slices.append(
            [
                config.slices * sum(planes[start : start + config.block])
                for start in range(0, tokens, config.block)
            ]
        )
    return job_cycles(config, *slices)


def job_cycles(config: EngineConfig, key_slices: Sequence[int], value_slices: Sequence[int]) -> int:
    """Cycles from a job's transfer to its last output's, both included.

    With k_i and v_i slices in key and value block i, i = 0 .. n::

        cycles = (D + 1)                        load the queries
               + sum_i v_i + k_0                slices nothing can hide behind
               + max(k_1, A)                    block 0's scores to weights, behind K block 1
               + sum_{0<i<n} max(k_{i+1}, H_i)  rescale by block i, behind K block i+1
               + H_n                            the last rescale has nothing before it (n > 0)
               + (R + D + 6)                    reciprocal, and the outputs

    where A is the latency from a last key slice to a block's weights and H_i that of a rescale,
    lengthened where V block i-1 is too short to hide the scores of block i.

    Parameters
    ----------
    key_slices, value_slices : slices of each block, planes of all its tokens times `slices`

    Raises
    ------
    ValueError
        When there is no block, or not as many value as key blocks.
    """
    if not key_slices or len(key_slices) != len(value_slices):
        raise ValueError(
            f"{len(key_slices)} key and {len(value_slices)} value blocks; need as many, at least 1"
        )
    score_latency = _adder_latency(config) + _PLANE_SCALER
    rescale = config.slices * config.rescale_steps
    last = len(key_slices) - 1

    # cycle in which the last slice of a block passes; the job's transfer is cycle 0
    key_ends = 1 + config.head_dim + key_slices[0]
    scores_end = key_ends + score_latency
    if last:
        key_ends += key_slices[1]
    values_end = max(key_ends, scores_end + _SOFTMAX) + value_slices[0]
    reciprocal = values_end + config.reciprocal_bits + 4
    drain = values_end + 1 + _WEIGHT_SCALER + 1
    for block in range(1, last + 1):
        scores_end = key_ends + score_latency
        weights = max(scores_end, values_end) + _SOFTMAX
        turn = values_end
        if block < last:
            key_ends = turn = values_end + key_slices[block + 1]
        # the weight scaler's registers take slices before the rescale they wait for is done
        early = min(value_slices[block], _WEIGHT_SCALER)
        start = max(turn, weights)
        rescaled = max(start, weights + rescale)
        values_end = start + value_slices[block]
        if value_slices[block] > early:
            values_end = rescaled + value_slices[block]
        reciprocal = values_end + config.reciprocal_bits + 4
        drain = rescaled + value_slices[block] + 1 + _WEIGHT_SCALER + 1
    return max(reciprocal, drain) + config.head_dim + _NORMALIZER


def _adder_latency(config: EngineConfig) -> int:
    multiplier = 1 if config.integer_bits else 0
    return multiplier + -(-(config.lanes - 1).bit_length() // _ADDER_LEVELS_PER_STAGE)
