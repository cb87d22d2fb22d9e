"""Second versions: every query attends as it would to a context that holds what it sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from golden.attend import float_reference, single_precision
from golden.engine import attend
from golden.planes import Planes
from golden.quantizer import quantize
from golden.queries import Queries, quantize_queries
from golden.second_version import SecondVersion
from kvtq_hw.contract.config import load_config

TINY = load_config("tiny")  # blocks of four tokens
BATCH, KV_HEADS, GROUP, QUERIES, TOKENS = 2, 2, 2, 5, 21
SHAPE = BATCH, KV_HEADS
#: First token and number of tokens that have two versions: in a block, over blocks, all, the last.
SPANS = [(3, 2), (6, 12), (16, 5), (0, TOKENS), (TOKENS - 1, 1)]
#: Padding in front of the real tokens of each sequence.
PADDING = [(0, 0), (0, 4)]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def visible_tokens(padding: tuple[int, ...]) -> torch.Tensor:
    """Causal attention of the newest queries over real tokens, bool [batch, 1, I, T]."""
    causal = torch.ones(QUERIES, TOKENS, dtype=torch.bool).tril(TOKENS - QUERIES)
    real = torch.arange(TOKENS) >= torch.tensor(padding)[:, None]
    return causal & real[:, None, None]


def seen_tokens(tokens: int) -> torch.Tensor:
    """Any query may see any second version, bool [I, M]; one query sees none, another all."""
    seen = torch.rand(QUERIES, tokens, generator=generator(9)) < 0.5
    seen[0], seen[-1] = False, True
    return seen


def alone(
    vectors: torch.Tensor, other: SecondVersion[torch.Tensor], axis: int
) -> Iterator[torch.Tensor]:
    """What each query sees: first versions, and second ones put over them token by token."""
    for query in range(QUERIES):
        x = vectors.clone()
        for place in other.seen[query].nonzero()[:, 0].tolist():
            x.select(axis, other.start + place).copy_(other.vectors.select(axis, place))
        yield x


@pytest.mark.parametrize("padding", PADDING, ids=str)
@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize(
    ("function", "kind", "tolerance"),
    [
        (float_reference.attend, torch.float64, 1e-12),
        (single_precision.attend, torch.float32, 1e-5),
    ],
)
def test_float_attention(function, kind, tolerance, span, padding):
    start, count = span
    made = generator(sum(span))
    queries = torch.randn(*SHAPE, GROUP, QUERIES, 8, generator=made, dtype=kind)
    firsts = torch.randn(2, *SHAPE, TOKENS, 8, generator=made, dtype=kind)
    seconds = torch.randn(2, *SHAPE, count, 8, generator=made, dtype=kind)
    others = [SecondVersion(x, start, seen_tokens(count)) for x in seconds]
    visible = visible_tokens(padding)
    found = function(queries, *firsts, visible, *others)
    contexts = (alone(*pair, -2) for pair in zip(firsts, others, strict=True))
    for query, (keys, values) in enumerate(zip(*contexts, strict=True)):
        here = slice(query, query + 1)
        expected = function(queries[..., here, :], keys, values, visible[..., here, :])
        torch.testing.assert_close(found[..., here, :], expected, rtol=tolerance, atol=tolerance)
    plain = function(queries, *firsts, visible)
    assert torch.equal(found[..., 0, :], plain[..., 0, :])  # it sees no second version
    assert not torch.allclose(found, plain)


def planes(seed: int, tokens: int, digits: int) -> Planes:
    x = torch.randint(-4000, 4000, (*SHAPE, tokens, 8), generator=generator(seed))
    return quantize(TINY, x, "residual" if digits < 5 else "balanced", digits, "max")


@pytest.mark.parametrize("padding", PADDING, ids=str)
@pytest.mark.parametrize("span", SPANS, ids=str)
def test_integer_attention(span, padding):
    """To the bit, with another number of runs in second versions than in first ones."""
    start, count = span
    real = torch.randn(*SHAPE, GROUP, QUERIES, 8, generator=generator(1)).double()
    size = torch.tensor([2e-3, 5e-2])  # one head sees several tokens, scores of the other saturate
    queries = quantize_queries(TINY, real * size[:, None, None])
    visible = visible_tokens(padding).expand(*SHAPE, QUERIES, TOKENS)
    firsts = [planes(seed, TOKENS, 3).merged() for seed in (2, 3)]
    seconds = [planes(seed, count, 5).merged() for seed in (4, 5)]
    others = [SecondVersion(x, start, seen_tokens(count)) for x in seconds]
    largest = max(int(x.exponent.max()) for x in (firsts[1], seconds[1]))
    exponent = torch.full((*SHAPE, QUERIES), largest)
    found = attend(TINY, queries, *firsts, visible, exponent, *others)
    saturated = 0
    for query in range(QUERIES):
        here = slice(query, query + 1)
        keys, values = (seen_by(query, *pair) for pair in zip(firsts, others, strict=True))
        for row, absent in enumerate(padding):  # each sequence without its padding
            real_keys, real_values = (
                x.map_tokens(lambda y, axis, r=row, n=absent: y[r].narrow(axis, n, TOKENS - n))
                for x in (keys, values)
            )
            expected = attend(
                TINY,
                Queries(queries.values[row, ..., here, :], queries.exponent[row, ..., here]),
                real_keys,
                real_values,
                visible[row, :, here, absent:],
                exponent[row, :, here],
            )
            assert torch.equal(found.values[row, ..., here, :], expected.values)
            assert torch.equal(found.exponent[row, ..., here], expected.exponent)
            saturated += int(expected.saturated)
    assert int(found.saturated) == saturated > 0
    assert not torch.equal(found.values, attend(TINY, queries, *firsts, visible, exponent).values)


def seen_by(query: int, first: Planes, other: SecondVersion[Planes]) -> Planes:
    """The planes of one query's context, second versions joined in between."""
    parts = []
    for token in range(first.tokens):
        place = token - other.start
        second = 0 <= place < other.vectors.tokens and other.seen[query, place]
        source, index = (other.vectors, place) if second else (first, token)
        parts.append(source.map_tokens(lambda x, axis, i=index: x.narrow(axis, i, 1)))  # type: ignore[misc]
    return Planes.join(parts)


def test_second_versions_need_the_exponent():
    version = SecondVersion(planes(1, 2, 5), 0, seen_tokens(2))
    queries = quantize_queries(TINY, torch.ones(*SHAPE, GROUP, QUERIES, 8).double())
    message = r"^exponent: None is not allowed where tokens have second versions$"
    with pytest.raises(ValueError, match=message):
        attend(
            TINY,
            queries,
            *(planes(seed, TOKENS, 5) for seed in (2, 3)),
            other_keys=version,
            other_values=version,
        )
