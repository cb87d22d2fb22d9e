"""Conditioning changes no attention output but for the rounding to 16-bit integers, once."""

from __future__ import annotations

import pytest
import torch

from golden.attend import float_reference
from golden.conditioning import Conditioning, to_integers
from golden.equalizer import Equalizer
from golden.hadamard import hadamard
from kvtq_hw.contract.config import VECTOR_MAX, load_config


def integers(*shape: int, seed: int, limit: int = 3000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, shape, generator=generator)


def exact_equalizer() -> Equalizer:
    """Scales of 1/2, 1 and 2, integer bases with integer inverses: mapping rounds nothing."""
    basis = integers(3, 24, 24, seed=5, limit=1).triu(1) + torch.eye(24, dtype=torch.int64)
    return Equalizer(2.0 ** integers(3, 24, seed=6, limit=1).double(), basis.double())


@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_attention_of_conditioned_vectors_is_that_of_the_vectors(rotate, centred, equalized):
    queries = integers(2, 3, 4, 5, 24, seed=1) / 1000
    keys, values = integers(2, 3, 9, 24, seed=2) / 2**10, integers(2, 3, 9, 24, seed=3) / 2**13
    centre = integers(3, 24, seed=4) if centred else None
    equalizer = exact_equalizer() if equalized else None
    conditioning = Conditioning(rotate, centre, -11, -13, equalizer=equalizer)
    conditioned_keys, saturated_keys = conditioning.condition_keys(keys)
    conditioned_values, saturated_values = conditioning.condition_values(values)
    assert conditioned_keys.dtype == conditioned_values.dtype == torch.int64
    assert saturated_keys == saturated_values == 0
    outputs = conditioning.restore_outputs(
        float_reference.attend(
            conditioning.condition_queries(queries),
            conditioned_keys.double(),
            conditioned_values.double(),
        )
    )
    expected = float_reference.attend(queries.double(), keys.double(), values.double())
    torch.testing.assert_close(outputs, expected)


def test_integers_are_those_of_equalized_vectors():
    equalizer = exact_equalizer()
    keys, values = integers(2, 3, 9, 24, seed=2) / 2**10, integers(2, 3, 9, 24, seed=3) / 2**13
    conditioning = Conditioning(True, None, -11, -13, equalizer=equalizer)
    assert conditioning.kv_heads == 3
    scaled = keys.double() / equalizer.key_scales[None, :, None]
    mapped = torch.einsum("bhtd,hde->bhte", values.double(), equalizer.value_basis)
    assert torch.equal(conditioning.integer_keys(keys)[0], (scaled * 2**11).long())
    assert torch.equal(conditioning.integer_values(values)[0], (mapped * 2**13).long())
    assert not torch.equal(conditioning.integer_keys(keys)[0], (keys * 2**11).long())


def test_each_head_has_its_own_centre():
    centre = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    keys = centre[None, :, None, :].expand(3, 2, 6, 4) / 2
    assert not Conditioning(False, centre, -1, 0).condition_keys(keys)[0].any()


def test_rotation_is_the_hadamard_transform():
    x = integers(1, 2, 3, 8, seed=4)
    conditioning = Conditioning(True, None, 0, 0)
    assert torch.equal(conditioning.condition_keys(x)[0], hadamard(x))
    assert torch.equal(conditioning.condition_values(x.float())[0], hadamard(x))
    assert torch.equal(Conditioning(False, None, 0, 0).condition_values(x)[0], x)


def test_rounding_and_symmetric_saturation():
    x = torch.tensor([0.3, 0.5, -0.74, 16383.5, 16384.0, -16384.0, -1e30])
    found, saturated = to_integers(x, -1)
    assert found.tolist() == [1, 1, -1, VECTOR_MAX, VECTOR_MAX, -VECTOR_MAX, -VECTOR_MAX]
    assert saturated == 3
    with pytest.raises(ValueError, match=r"^x holds an element that is not finite$"):
        to_integers(torch.tensor([1.0, float("nan")]), 0)


@pytest.mark.parametrize("preset", ["tiny", "smollm2", "llama3-8b"])
def test_the_largest_conditioned_element_is_reached(preset):
    config = load_config(preset)
    largest = torch.full((1, 1, 1, config.head_dim), 1e9)
    signs = hadamard(torch.eye(config.head_dim))[:, 0]  # those of output 0's sum
    conditioning = Conditioning(True, -(signs * VECTOR_MAX).long()[None], 0, 0)
    found, _ = conditioning.condition_keys(largest * signs)
    assert found.abs().max() == config.conditioned_max
