"""Cycle model: clock cycles of one job on the engine, from the job's shape alone.

The model is exact for an engine that starts idle and whose streams never wait: tests compare it
with the RTL's own cycle counter. The engine's timing depends on no data, and neither does the
model.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import EngineConfig

__all__ = [
    "bound_cycles",
    "code_bound",
    "code_job_cycles",
    "code_slices",
    "job_cycles",
    "token_job_cycles",
    "token_slices",
    "uniform_job_cycles",
]

# Latencies of the datapath in cycles; tests compare each with its block.
_ADDER_LEVELS_PER_STAGE = 4
_PLANE_SCALER = 4
_SOFTMAX = 7  # from a block's last score, or the previous block's last weight, to its first weight
_WEIGHT_SCALER = 3
_DRAIN = 3  # from an accepted DRAIN to its accumulator's value leaving the bank
_NORMALIZER = 4


def bound_cycles(config: EngineConfig, tokens: int, key_planes: int, value_planes: int) -> int:
    """Return the bound in cycles: one slice per cycle, keys and values of one run each.

    The bound is ``T (ceil(N_k / P_k) + ceil(N_v / P_v)) ceil(D / lanes)`` with P planes per slice.
    """
    key_slices = token_slices(config.key_planes_per_cycle, key_planes)
    value_slices = token_slices(config.value_planes_per_cycle, value_planes)
    return tokens * (key_slices + value_slices) * config.slices


def token_slices(planes_per_cycle: int, planes: int, runs: int = 1) -> int:
    """Return lane slices per token for `planes` planes split evenly into `runs` runs.

    The count is for one group of `lanes` elements: multiply by `config.slices` for a whole vector.
    """
    return runs * -(-planes // (runs * planes_per_cycle))


def uniform_job_cycles(
    config: EngineConfig, tokens: int, key_planes: int, value_planes: int
) -> int:
    """Return the cycles of a job with one run per vector: `key_planes` or `value_planes` planes."""
    keys = token_slices(config.key_planes_per_cycle, key_planes) * config.slices
    values = token_slices(config.value_planes_per_cycle, value_planes) * config.slices
    return token_job_cycles(config, [keys] * tokens, [values] * tokens)


def code_bound(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """Return `bound_cycles` of a context in a code, with sinks and window in the tier's digits."""
    return sum(code_slices(config, code, tokens))


def code_slices(config: EngineConfig, code: CacheCode, tokens: int) -> tuple[int, int]:
    """Return the slices of a context's keys and those of its values, in a code with its tiers."""
    keys, values = _code_slices(config, code)
    return code.tiers.total(tokens, *keys), code.tiers.total(tokens, *values)


def code_job_cycles(config: EngineConfig, code: CacheCode, tokens: int) -> int:
    """Return `job_cycles` of a context in a code, with sinks and window in the tier's digits."""
    keys, values = (code.tiers.per_token(tokens, *s) for s in _code_slices(config, code))
    return token_job_cycles(config, keys, values)


def token_job_cycles(
    config: EngineConfig, key_slices: Sequence[int], value_slices: Sequence[int]
) -> int:
    """Return `job_cycles` from the slices per token, of its key and of its value."""
    keys, values = (
        [sum(slices[start : start + config.block]) for start in range(0, len(slices), config.block)]
        for slices in (key_slices, value_slices)
    )
    return job_cycles(config, keys, values)


def _code_slices(config: EngineConfig, code: CacheCode) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return slices per key in the tier and in the body, and the same per value."""

    def of(digits: int, planes_per_cycle: int) -> tuple[int, int]:
        tier = token_slices(planes_per_cycle, code.tier_digits(config.max_planes))
        body = token_slices(planes_per_cycle, digits, code.scales(digits))
        return tier * config.slices, body * config.slices

    return (
        of(code.key_digits, config.key_planes_per_cycle),
        of(code.value_digits, config.value_planes_per_cycle),
    )


def job_cycles(config: EngineConfig, key_slices: Sequence[int], value_slices: Sequence[int]) -> int:
    """Return the cycles from a job's transfer to the transfer of its last output, both included.

    With k_i and v_i slices in key and value block i, i = 0 .. n::

        cycles = (D + 1)                        load the queries
               + sum_i v_i + k_0                slices that overlap with nothing else
               + max(k_1, A)                    block 0's scores to weights, behind K block 1
               + sum_{0<i<n} max(k_{i+1}, H_i)  rescale by block i, behind K block i+1
               + H_n                            the last rescale overlaps with no key block (n > 0)
               + (G (R + 2) + D U + 6)          reciprocals, and the outputs in U turns each

    A is the latency from the last key slice of a block to the block's weights. H_i is the latency
    of a rescale, longer where V block i-1 is too short to hide the scores of block i.

    Parameters
    ----------
    key_slices, value_slices : slices per block: those of all its tokens, over the whole vector

    Raises
    ------
    ValueError
        When there is no block, or the numbers of key and value blocks differ.
    """
    if not key_slices or len(key_slices) != len(value_slices):
        raise ValueError(
            f"{len(key_slices)} key and {len(value_slices)} value blocks; need as many, at least 1"
        )
    score_latency = _adder_latency(config) + _PLANE_SCALER
    rescale = config.slices * config.rescale_steps
    last = len(key_slices) - 1

    # `key_ends`, `values_end`: cycle of a block's last slice; the job's transfer is cycle 0
    key_ends = 1 + config.head_dim + key_slices[0]
    scores_end = key_ends + score_latency
    if last:
        key_ends += key_slices[1]
    values_end = max(key_ends, scores_end + _SOFTMAX) + value_slices[0]
    reciprocals = config.query_group * (config.reciprocal_bits + 2) + 2
    drain = values_end + 1 + _WEIGHT_SCALER + _DRAIN
    for block in range(1, last + 1):
        scores_end = key_ends + score_latency
        weights = max(scores_end, values_end) + _SOFTMAX
        turn = values_end
        if block < last:
            key_ends = turn = values_end + key_slices[block + 1]
        # the weight scaler's registers accept slices before the rescale ahead of them is done
        early = min(value_slices[block], _WEIGHT_SCALER)
        start = max(turn, weights)
        rescaled = max(start, weights + rescale)
        values_end = start + value_slices[block]
        if value_slices[block] > early:
            values_end = rescaled + value_slices[block]
        drain = rescaled + value_slices[block] + 1 + _WEIGHT_SCALER + _DRAIN
    outputs = config.head_dim * config.normalizer_turns + _NORMALIZER
    return max(values_end + reciprocals, drain) + outputs


def _adder_latency(config: EngineConfig) -> int:
    # one more register: behind the multipliers, or where the planes of a slice are combined
    more = not config.is_ternary or config.key_planes_per_cycle > 1
    return more + -(-(config.lanes - 1).bit_length() // _ADDER_LEVELS_PER_STAGE)
