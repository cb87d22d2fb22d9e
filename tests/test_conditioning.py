"""Conditioning changes no attention output of real numbers."""

from __future__ import annotations

import pytest
import torch

from golden import float_reference
from golden.conditioning import Conditioning
from golden.hadamard import hadamard


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_attention_of_conditioned_vectors_is_that_of_the_vectors(rotate, centred):
    queries = gaussian(2, 3, 4, 5, 16, seed=1)
    keys, values = gaussian(2, 2, 3, 9, 16, seed=2)
    centre = 10 * gaussian(3, 16, seed=3) if centred else None
    conditioning = Conditioning(rotate, centre)
    outputs = conditioning.restore_outputs(
        float_reference.attend(
            conditioning.condition_queries(queries),
            conditioning.condition_keys(keys),
            conditioning.condition_values(values),
        )
    )
    torch.testing.assert_close(outputs, float_reference.attend(queries, keys, values))


def test_each_head_has_its_own_centre():
    centre = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    keys = centre[None, :, None, :].expand(3, 2, 6, 4)
    assert not Conditioning(False, centre).condition_keys(keys).any()


def test_rotation_is_the_hadamard_transform():
    x = gaussian(1, 2, 3, 8, seed=4)
    conditioning = Conditioning(True, None)
    assert torch.equal(conditioning.condition_keys(x), hadamard(x))
    assert torch.equal(conditioning.condition_values(x), hadamard(x))
    assert torch.equal(conditioning.condition_queries(x), hadamard(x))
    assert torch.equal(Conditioning(False, None).condition_values(x.float()), x.float().double())
