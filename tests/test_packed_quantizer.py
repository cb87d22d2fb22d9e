"""The compiled writer and reader: equal in every byte to quantizing and packing step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden.cache.plane_store import PlaneStore
from golden.dequantizer import dequantize
from golden.feedback import Feedback, feedback_from_hessian
from golden.quantizer import FEEDBACK_RATIOS, quantize
from kvtq_hw.contract.config import EngineConfig, load_config

CONFIG = load_config("smollm2")
CONFIGS = {
    "smollm2": CONFIG,
    "power-of-two": CONFIG.replace(scale_fraction_bits=0),
    "wide-2bit": CONFIG.replace(scale_fraction_bits=8, packing="2bit"),
    # the largest vectors' scales are beyond the field
    "12-elements": CONFIG.replace(head_dim=12, lanes=4, scale_exponent_bits=4),
}
CPU = torch.device("cpu")


def corner_vectors(config: EngineConfig, batch: int, heads: int) -> torch.Tensor:
    """Gaussian vectors of all sizes, zeros, the largest elements, ties, single outliers."""
    generator = torch.Generator().manual_seed(config.head_dim)
    largest, dim = 2 * config.conditioned_max, config.head_dim
    x = torch.randn(batch, heads, 60, dim, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(-1, 24, 60, 2, dtype=torch.float64)
    corners = torch.zeros(batch, heads, 8, dim, dtype=torch.int64)
    corners[..., 1, :] = largest
    corners[..., 2, :] = -largest
    corners[..., 3, 0] = largest
    corners[..., 4, -1] = 1
    corners[..., 5, :] = torch.arange(dim) % 7 - 3  # halves of small scales: ties
    corners[..., 6, ::2] = 12
    corners[..., 7, :] = 1
    return torch.cat(((x * sizes[:, None]).long().clamp(-largest, largest), corners), 2)


def some_feedback(config: EngineConfig, heads: int) -> Feedback:
    """As calibration makes it."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(heads, config.head_dim, 2 * config.head_dim, generator=generator)
    return feedback_from_hessian(x @ x.mT, 0.03)


def strong_feedback(config: EngineConfig, heads: int) -> Feedback:
    """Any factors and shifts: errors add up until the sums saturate, and come back from there."""
    generator = torch.Generator().manual_seed(4)
    dim = config.head_dim
    factors = torch.randint(-4, 5, (heads, dim, dim), generator=generator, dtype=torch.int8)
    return Feedback(factors.triu(1), torch.randint(0, 8, (heads, dim), generator=generator))


FEEDBACKS = {"plain": None, "calibrated": some_feedback, "strong": strong_feedback}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("digits", range(1, 6))
@pytest.mark.parametrize("make_feedback", FEEDBACKS.values(), ids=FEEDBACKS)
def test_stores_the_bytes_of_quantize_and_pack(name, digits, make_feedback):
    config = CONFIGS[name]
    vectors = corner_vectors(config, 2, 3)
    feedback = make_feedback(config, 3) if make_feedback else None
    ratio = FEEDBACK_RATIOS["value"][digits - 1] if make_feedback else None
    planes = quantize(
        config, vectors, "balanced", digits, "absmean", ratio=ratio, feedback=feedback
    )
    expected = PlaneStore(config, "balanced", digits, 2, 3, CPU)
    expected.append(planes)
    found = PlaneStore(config, "balanced", digits, 2, 3, CPU, ratio=ratio, feedback=feedback)
    for piece in vectors.split((1, 2, 60, 5), 2):
        found.append_vectors(piece)
    assert found.tokens == expected.tokens == 68
    for stored, reference in zip(found.view().buffers(), expected.view().buffers(), strict=True):
        assert stored.dtype == reference.dtype
        assert np.array_equal(stored[..., :68, :], reference[..., :68, :])
    assert torch.equal(found.vectors(0, 68), dequantize(config, planes))
    assert torch.equal(found.vectors(7, 9), dequantize(config, planes)[:, :, 7:9])


def test_dropping_and_growing_leaves_the_newest_tokens():
    """A window: the oldest leave one by one, and the buffer is used again and again."""
    vectors = corner_vectors(CONFIG, 1, 2).repeat(1, 1, 4, 1)
    store = PlaneStore(CONFIG, "balanced", 5, 1, 2, CPU)
    expected = dequantize(CONFIG, quantize(CONFIG, vectors, "balanced", 5, "absmean"))
    for token in range(vectors.shape[2]):
        store.append_vectors(vectors[:, :, token : token + 1])
        store.drop(max(0, store.tokens - 33))
        first = max(0, token - 32)
        assert torch.equal(store.vectors(0, store.tokens), expected[:, :, first : token + 1])
        assert torch.equal(dequantize(CONFIG, store.planes()), expected[:, :, first : token + 1])
    assert store.view().buffers()[0].shape[-2] <= 38
    assert store.stored_bytes() == 2 * 33 * (5 * 13 + 1)


def test_a_window_that_a_long_chunk_passed_gives_its_room_back():
    store = PlaneStore(CONFIG, "balanced", 5, 1, 1, CPU)
    vectors = corner_vectors(CONFIG, 1, 1).repeat(1, 1, 8, 1)
    store.append_vectors(vectors)
    store.drop(512)
    assert store.view().buffers()[0].shape[-2] == 32 + 4
    expected = dequantize(CONFIG, quantize(CONFIG, vectors, "balanced", 5, "absmean"))
    assert torch.equal(store.vectors(0, 32), expected[:, :, 512:])


def test_refuses_elements_that_are_too_large_and_stores_nothing():
    store = PlaneStore(CONFIG, "balanced", 2, 1, 1, CPU)
    limit = 2 * CONFIG.conditioned_max
    vectors = torch.zeros(1, 1, 2, 64, dtype=torch.int64)
    vectors[0, 0, 1, 5] = -limit - 1
    message = f"^x holds {limit + 1}; allowed are magnitudes up to {limit}$"
    with pytest.raises(ValueError, match=message):
        store.append_vectors(vectors)
    assert store.tokens == 0


def test_refuses_the_number_whose_magnitude_is_none():
    """-2**63: its magnitude is negative in 64 bits, and the search for a scale never ended."""
    store = PlaneStore(CONFIG, "balanced", 2, 1, 1, CPU)
    with pytest.raises(
        ValueError, match=r"^x holds 9223372036854775808; allowed are magnitudes up"
    ):
        store.append_vectors(torch.full((1, 1, 1, 64), -(2**63)))
    assert store.tokens == 0


def test_refuses_vectors_that_are_not_int64():
    store = PlaneStore(CONFIG, "balanced", 2, 1, 1, CPU)
    with pytest.raises(TypeError, match=r"^vectors are torch\.int32, must be torch\.int64$"):
        store.append_vectors(torch.zeros(1, 1, 1, 64, dtype=torch.int32))
