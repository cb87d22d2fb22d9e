"""Cycles of one job on the engine, from its shape alone.

The model is exact for an engine that starts idle and whose streams never wait: tests hold it equal
to the RTL's own counter. No data enters it, since the engine's timing depends on none.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig

__all__ = [
    "bound_cycles",
    "code_bound",
    "code_job_cycles",
    "job_cycles",
    "token_job_cycles",
    "token_slices",
    "uniform_job_cycles",
]

# Latencies of the datapath, in cycles; tests tie each to the block that has it.
_ADDER_LEVELS_PER_STAGE = 4
_PLANE_SCALER = 4
_SOFTMAX = 7  # last score of a block, or last weight of the one before, to the first weight
_WEIGHT_SCALER = 3
_DRAIN = 3  # an accumulator's way from the bank, once its DRAIN was taken
_NORMALIZER = 2


def bound_cycles(config: EngineConfig, tokens: int, key_planes: int, value_planes: int) -> int:
    """Cycles at one slice per cycle, which none can beat, of keys and values of one run each.

    ``T (ceil(N_k / P_k) + ceil(N_v / P_v)) ceil(D / lanes)`` with P planes per slice.
    """
    key_slices = token_slices(config.key_planes_per_cycle, key_planes)
    value_slices = token_slices(config.value_planes_per_cycle, value_planes)
    return tokens * (key_slices + value_slices) * config.slices


def token_slices(planes_per_cycle: int, planes: int, runs: int = 1) -> int:
    """Slices of lanes that a token's planes take, in `runs` runs of one length."""
    return runs * -(-planes // (runs * planes_per_cycle))


def uniform_job_cycles(
    config: EngineConfig, tokens: int, key_planes: int, value_planes: int
) -> int:
    """Cycles of a job whose keys have one run of `key_planes` each, values of `value_planes`."""
    keys = token_slices(config.key_planes_per_cycle, key_planes) * config.slices
    values = token_slices(config.value_planes_per_cycle, value_planes) * config.slices
    return token_job_cycles(config, [keys] * tokens, [values] * tokens)


def code_bound(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """`bound_cycles` of a context in a code, its tiers in their own digits."""
    return sum(code.tiers.total(tokens, *slices) for slices in _code_slices(config, code))


def code_job_cycles(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """`job_cycles` of a context in a code, its tiers in their own digits."""
    keys, values = (code.tiers.per_token(tokens, *s) for s in _code_slices(config, code))
    return token_job_cycles(config, keys, values)


def token_job_cycles(
    config: EngineConfig, key_slices: Sequence[int], value_slices: Sequence[int]
) -> int:
    """`job_cycles`, from the slices of each token's key and of each token's value."""
    keys, values = (
        [sum(slices[start : start + config.block]) for start in range(0, len(slices), config.block)]
        for slices in (key_slices, value_slices)
    )
    return job_cycles(config, keys, values)


def _code_slices(config: EngineConfig, code: CacheCode) -> tuple[tuple[int, int], tuple[int, int]]:
    """Slices per key in the tier and in the body, and the same per value."""

    def of(digits: int, planes_per_cycle: int) -> tuple[int, int]:
        tier = token_slices(planes_per_cycle, code.tier_digits(config.max_planes))
        body = token_slices(planes_per_cycle, digits, code.scales(digits))
        return tier * config.slices, body * config.slices

    return (
        of(code.key_digits, config.key_planes_per_cycle),
        of(code.value_digits, config.value_planes_per_cycle),
    )


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
    drain = values_end + 1 + _WEIGHT_SCALER + _DRAIN
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
        drain = rescaled + value_slices[block] + 1 + _WEIGHT_SCALER + _DRAIN
    return max(reciprocal, drain) + config.head_dim + _NORMALIZER


def _adder_latency(config: EngineConfig) -> int:
    # a register behind the multipliers, or where the planes of a slice come together
    more = not config.is_ternary or config.key_planes_per_cycle > 1
    return more + -(-(config.lanes - 1).bit_length() // _ADDER_LEVELS_PER_STAGE)
