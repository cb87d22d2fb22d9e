"""The bounds that the running maximum keeps: of the denominator, the maximum, the accumulators."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden.learned_sinks import LearnedSinks
from golden.online_softmax import online_softmax
from golden.value_lanes import accumulate
from kvtq_hw.contract.config import EngineConfig, load_config

TINY = load_config("tiny")
CONFIGS = {
    "tiny": TINY,
    "few-weight-bits": TINY.replace(weight_bits=6, max_context=512),
    "power-of-two": TINY.replace(scale_fraction_bits=0, max_planes=1),
    "one-block": TINY.replace(block=64),
    "long-context": TINY.replace(weight_bits=6, max_context=2048),
    "int8": TINY.replace(cache_format="int8", max_planes=1, max_context=512),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def sequences(config: EngineConfig) -> torch.Tensor:
    """Scores [K, T] over the whole context: flat at any height, drifting, in steps, of any kind."""
    rng = np.random.default_rng(1)
    tokens, octave = config.max_context, 1 << config.score_fraction_bits
    time = np.arange(tokens)
    rows = [np.full(tokens, height) for height in (config.score_max, -config.score_max - 1, 0, 1)]
    rows += [time * slope // 16 for slope in (-2, -1, 1, 2, octave)]
    for _ in range(60):
        steps = np.repeat(rng.integers(-2, 3, tokens), config.block)[:tokens] * octave
        rows.append(np.cumsum(steps // int(rng.integers(1, 40))) + rng.integers(0, 3, tokens))
    scores = np.clip(np.stack(rows), -config.score_max - 1, config.score_max)
    return torch.from_numpy(scores)


def prefixes(config: EngineConfig, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence seen by up to 32 queries, each the same number of blocks more."""
    tokens = len(row)
    step = max(config.block, tokens // 32)
    ends = torch.arange(step, tokens + 1, step)
    visible = torch.arange(tokens) < ends[:, None]
    return row.expand(1, len(ends), tokens), visible


def learned_sinks(config: EngineConfig, row: torch.Tensor) -> LearnedSinks:
    """Learned sinks of one head each: none, then the largest weight, then the smallest.

    Their maxima are those of the first block and of all scores, around the largest of any score,
    and both ends of the range.
    """
    ceilings = -(-row >> config.score_fraction_bits)
    end = 1 << (config.maximum_bits - 1)
    most = config.ceiling_max
    maxima = [0, int(ceilings[: config.block].max()), int(ceilings.max())]
    maxima += [*range(most - 1, most + 8), end - 2, end - 1, -end]
    maximum = torch.tensor(maxima * 2)
    weight = torch.full_like(maximum, (2 << config.weight_bits) - 1)
    weight[len(maxima) :] = 1 << (config.weight_bits - 1)
    weight[0] = 0
    return LearnedSinks(maximum, weight)


@every_config
def test_sums_and_accumulators_stay_within_their_bounds(config: EngineConfig) -> None:
    largest_sum = largest_accumulator = 0
    for row in sequences(config):
        scores, visible = prefixes(config, row)
        sinks = learned_sinks(config, row)
        scores = scores.expand(len(sinks.weight), -1, -1)
        softmax = online_softmax(config, scores, visible, sinks)
        largest_sum = max(largest_sum, int(softmax.sums.max()))
        assert softmax.sums.min() >= 1 << (config.weight_bits - 1)
        half = (1 << config.scale_fraction_bits) >> 1
        scaled = (softmax.weights[0] * config.mantissa_max + half) >> config.scale_fraction_bits
        added = scaled.sum(-1).permute(2, 0, 1)[..., None] * config.code_max
        for sign in (1, -1):
            accumulators = accumulate(sign * added, softmax.shifts)
            limit = 1 << (config.accumulator_bits - 1)
            assert -limit <= accumulators.min()
            assert accumulators.max() < limit
            largest_accumulator = max(largest_accumulator, int(accumulators.abs().max()))
    assert largest_sum <= config.sum_of_weights_max
    # neither bound has a bit to spare
    assert largest_sum.bit_length() >= config.sum_of_weights_bits - 1
    assert largest_accumulator.bit_length() >= config.accumulator_bits - 2


@every_config
def test_the_maximum_fits_in_its_bits(config: EngineConfig) -> None:
    """The highest flat context, where raises carry the maximum furthest, under learned sinks."""
    row = torch.full((config.max_context,), config.score_max)
    scores, visible = prefixes(config, row)
    sinks = learned_sinks(config, row)
    sinks.maximum[0] = -(-config.score_max >> config.score_fraction_bits)  # where the first starts
    softmax = online_softmax(config, scores.expand(len(sinks.weight), -1, -1), visible, sinks)
    maximum = sinks.maximum + softmax.shifts[:, -1].sum(-1)
    assert config.maximum_max < 1 << (config.maximum_bits - 1)
    assert (maximum <= sinks.maximum.clamp(min=config.maximum_max)).all()


def test_a_query_is_not_rescaled_by_blocks_that_it_does_not_see() -> None:
    """Causal attention in one pass gives what each query gives alone."""
    tokens = TINY.max_context
    scores = torch.randint(0, 40, (1, 1, tokens)).expand(1, tokens, tokens)
    together = online_softmax(TINY, scores, torch.ones(tokens, tokens, dtype=torch.bool).tril())
    assert together.shifts.sum() > tokens
    for query in range(tokens):
        seen = query + 1
        alone = online_softmax(TINY, scores[:, :1, :seen], torch.ones(1, seen, dtype=torch.bool))
        blocks = alone.shifts.shape[-1]
        assert torch.equal(together.sums[:, query], alone.sums[:, 0])
        assert torch.equal(together.shifts[:, query, :blocks], alone.shifts[:, 0])
        assert not together.shifts[:, query, blocks:].any()


def test_bounded_sums_leave_weights_their_precision() -> None:
    """8192 tokens of about equal weight: each keeps more than W - 8 bits, the denominator more."""
    config = load_config("smollm2")
    generator = torch.Generator().manual_seed(1)
    octave, tokens = 1 << config.score_fraction_bits, config.max_context
    scores = torch.randint(0, octave, (1, 1, tokens), generator=generator)
    softmax = online_softmax(config, scores, torch.ones(1, tokens, dtype=torch.bool))
    assert softmax.shifts.sum() >= 7
    assert softmax.weights[0][0, 0, -1].min() >= 1 << (config.weight_bits - 9)
    maximum = torch.ceil(scores[..., : config.block].max() / octave) + softmax.shifts.sum()
    true = torch.exp2(scores.double() / octave - maximum).sum()
    found = softmax.sums.double() / (1 << config.weight_bits)
    assert abs(found / true - 1).item() < 2.0 ** (7 - config.weight_bits)
