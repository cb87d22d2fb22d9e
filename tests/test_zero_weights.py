"""Values without weight, where the weights are known beforehand."""

from __future__ import annotations

import dataclasses

import torch
from tiny_model import tiny_model

from golden.attend.attention import ATTENTION
from golden.attend.backends import GoldenBackend
from golden.cache.ternary_cache import TernaryCache
from golden.conditioning import Conditioning
from golden.engine import attend
from golden.planes import Planes
from golden.queries import Queries
from golden.study.zero_weights import CountingBackend, weightless_values
from kvtq_hw.contract.codes import CacheCode
from kvtq_hw.contract.config import load_config

TINY = load_config("tiny")
TOKENS = 6


def found(keys: torch.Tensor, queries: torch.Tensor, exponents: list[int]) -> list[list[bool]]:
    """Run one KV head: keys [T] in every element, queries [G], exponents of the values' scales."""

    def planes(digits: torch.Tensor, exponent: list[int]) -> Planes:
        one = torch.ones(TOKENS, 1, dtype=torch.long)
        return Planes(
            digits[:, None, None].expand(TOKENS, 1, 8).to(torch.int8),
            one.bool(),
            0 * one,
            torch.tensor(exponent)[:, None],
        )

    result = weightless_values(
        TINY,
        Queries(queries[:, None, None].expand(2, 1, 8), torch.zeros(2, 1, dtype=torch.long)),
        planes(keys, [12] * TOKENS),
        planes(torch.ones(TOKENS), exponents),
        torch.ones(TOKENS, dtype=torch.long),
        torch.tensor([max(exponents)]),
        None,
    )
    return [result.before.tolist(), result.after.tolist()]


EQUAL = torch.zeros(TOKENS)
ONE_ABOVE = torch.tensor([1, 0, 0, 0, 0, 0])


def test_equal_scores_have_weights():
    assert found(EQUAL, torch.tensor([127, 127]), [10] * TOKENS) == [[False] * TOKENS] * 2


def test_far_below_the_maximum_for_all_heads():
    others = [False, *[True] * (TOKENS - 1)]
    assert found(ONE_ABOVE, torch.tensor([127, 127]), [10] * TOKENS) == [others, others]


def test_one_head_suffices():
    assert found(ONE_ABOVE, torch.tensor([127, 0]), [10] * TOKENS) == [[False] * TOKENS] * 2


def test_scales_far_below_the_largest():
    """A weight of one, times 2**-30, rounds to zero."""
    exponents = [31, 31, 1, 31, 31, 1]
    none, small = [False] * TOKENS, [exponent == 1 for exponent in exponents]
    assert found(EQUAL, torch.tensor([127, 127]), exponents) == [none, small]


def test_outputs_do_not_need_these_values():
    generator = torch.Generator().manual_seed(1)
    count, group = 300, TINY.query_group

    def planes(depth: int, low: int) -> Planes:
        shape = count, depth
        return Planes(
            torch.randint(-1, 2, (*shape, 8), generator=generator).to(torch.int8),
            torch.arange(depth).expand(shape) == 0,
            torch.randint(0, 1 << TINY.scale_fraction_bits, shape, generator=generator),
            torch.randint(low, 14, shape, generator=generator),
        )

    keys, values = planes(3, 10), planes(2, 4)
    values_of = torch.randint(-127, 128, (group, 1, 8), generator=generator)
    queries = Queries(values_of, torch.zeros(group, 1, dtype=torch.long))
    exponent = torch.tensor([13])
    depths = torch.full((count,), 2)
    weightless = weightless_values(TINY, queries, keys, values, depths, exponent, None)
    assert 0 < weightless.before.sum() < weightless.after.sum() < count
    assert not (weightless.before & ~weightless.after).any()

    def outputs(hidden: torch.Tensor) -> torch.Tensor:
        digits = values.digits.masked_fill(hidden[:, None, None], 0)
        without = dataclasses.replace(values, digits=digits)
        return attend(TINY, queries, keys, without, exponent=exponent).values

    everything = outputs(torch.zeros(count, dtype=torch.bool))
    assert torch.equal(outputs(weightless.after), everything)
    assert not torch.equal(outputs(~weightless.after), everything)


def test_every_decode_step_counts():
    model = tiny_model()
    model.model.set_attn_implementation(ATTENTION)
    counting = CountingBackend(GoldenBackend())
    code = CacheCode.parse("balanced:2/1,sinks=2,window=3")
    cache = TernaryCache(TINY, code, [Conditioning(False, None, -12, -12)] * 2, counting)
    with torch.inference_mode():
        for length in (7, 1, 1):
            model.model(torch.full((1, length), 5), past_key_values=cache)
    assert [head.depths.tolist() for head in counting.found] == [
        [5, 5, *[1] * (tokens - 5), 5, 5, 5] for tokens in (8, 9) for _ in range(2 * 2)
    ]
