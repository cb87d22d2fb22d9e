"""The float reference against torch's own attention, and the integer model's distance to it."""

from __future__ import annotations

import pytest
import torch

from golden.attend import float_reference
from golden.dequantizer import dequantize
from golden.engine import attend
from golden.quantizer import quantize
from golden.queries import quantize_queries
from golden.query_conditioner import query_conditioner
from kvtq_hw.contract.config import load_config

WIDE = {
    "query_bits": 12,
    "score_bits": 16,
    "score_fraction_bits": 7,
    "weight_bits": 14,
    "output_fraction_bits": 10,
}


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def causal(queries: int, tokens: int) -> torch.Tensor:
    return torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries)


def test_it_is_scaled_dot_product_attention():
    queries, keys, values = gaussian(2, 3, 4, 5, 16, seed=1), *gaussian(2, 2, 3, 9, 16, seed=2)
    visible = causal(5, 9)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, keys[:, :, None], values[:, :, None], attn_mask=visible
    )
    torch.testing.assert_close(
        float_reference.attend(queries, keys, values, visible.expand(2, 3, 5, 9)), expected
    )


def test_a_row_that_sees_nothing_is_zero():
    queries, keys, values = gaussian(1, 1, 2, 8, seed=1), *gaussian(2, 1, 4, 8, seed=2)
    visible = torch.tensor([[[False] * 4, [True] * 4]])
    outputs = float_reference.attend(queries, keys, values, visible)
    assert not outputs[:, :, 0].any()
    assert outputs[:, :, 1].all()


@pytest.mark.parametrize("code", [("balanced", 3, 2), ("balanced", 5, 5), ("residual", 4, 3)])
@pytest.mark.parametrize("tokens", [1, 33, 300])
@pytest.mark.parametrize("widths", ["preset", "wide"])
def test_integer_attention_stays_close_to_it(code, tokens, widths):
    """Relative rms error.

    With wide widths 0.0013 to 0.0017 for balanced codes (measured), up to 0.0045 for the residual
    one, whose runs are each rounded. With those of the smollm2 preset outputs are rounded to a 64th
    of the largest scale: 0.02, and 0.063 for the residual code, whose first scale is the largest.
    """
    config = load_config("smollm2")
    kind, key_digits, value_digits = code
    limit = 0.025 if kind == "balanced" else 0.08
    if widths == "wide":
        config, limit = config.replace(**WIDE), 0.006
    queries = 2 * gaussian(3, 3, 4, 64, seed=3)
    unit = 1 << 17
    raw_keys, raw_values = (gaussian(2, 3, tokens, 64, seed=4) * unit).long()
    keys = quantize(config, raw_keys, kind, key_digits, "max")
    values = quantize(config, raw_values, kind, value_digits, "max")
    integers = query_conditioner(config, quantize_queries(config, queries / unit), rotate=False)
    found = attend(config, integers, keys, values)
    assert not found.saturated
    real_keys, real_values = (dequantize(config, planes).double() for planes in (keys, values))
    expected = float_reference.attend(queries / unit, real_keys, real_values)
    error = (found.to_float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    print(f"{code} {tokens} tokens: relative rms error {error:.2g}")
    assert error < limit
