"""Safetensors files: what is read is exactly what was expected, everything else is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from golden.tensors import Expected, read_metadata, read_tensors, write_tensors
from kvtq_hw.contract.errors import UserError

TENSORS = {
    "trits": torch.tensor([[1, 0, -1], [0, 0, 1]], dtype=torch.int8),
    "scales": torch.tensor([0.5, 2.0]),
}
EXPECTED = {
    "trits": Expected(torch.int8, ("tokens", 3), -1, 1),
    "scales": Expected(torch.float32, ("tokens",)),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_what_fits_is_read_as_it_was_written(file: Path) -> None:
    write_tensors(file, "numbers", TENSORS, {"format": "1"})
    assert read_metadata(file, "numbers") == {"format": "1"}
    found = read_tensors(file, "numbers", EXPECTED)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trits": None}, "trits: missing"),
        ({"more": torch.zeros(1)}, "more: no tensor of such a file"),
        (
            {"trits": torch.zeros(2, 4, dtype=torch.int8)},
            "trits: has shape [2, 4]; must be [tokens = 2, 3], none of them zero",
        ),
        (
            {"trits": torch.zeros(2, 3, 1, dtype=torch.int8)},
            "trits: has shape [2, 3, 1]; must be [tokens = 2, 3], none of them zero",
        ),
        (
            {"scales": torch.ones(3)},
            "scales: has shape [3]; must be [tokens = 2], none of them zero",
        ),
        (
            {"trits": torch.zeros(0, 3, dtype=torch.int8), "scales": torch.ones(0)},
            "trits: has shape [0, 3]; must be [tokens = 0, 3], none of them zero",
        ),
        ({"trits": torch.zeros(2, 3)}, "trits: elements are torch.float32; must be torch.int8"),
        (
            {"trits": torch.full((2, 3), 2, dtype=torch.int8)},
            "trits: elements are 2..2; must be in -1..1",
        ),
        (
            {"trits": torch.full((2, 3), -2, dtype=torch.int8)},
            "trits: elements are -2..-2; must be in -1..1",
        ),
        (
            {"scales": torch.tensor([1.0, torch.nan])},
            "scales: holds an element that is not finite",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    file: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: x for name, x in (TENSORS | changes).items() if x is not None}
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"^{re.escape(f'numbers {str(file)!r}: {message}')}$"):
        read_tensors(file, "numbers", EXPECTED)


def test_what_is_no_such_file_is_one_line(file: Path) -> None:
    with pytest.raises(UserError, match=r"^numbers '[^\n]*': No such file"):
        read_metadata(file, "numbers")
    file.write_bytes(b"nothing")
    for read in (read_metadata, lambda *args: read_tensors(*args, EXPECTED)):
        with pytest.raises(UserError, match=r"^numbers '[^\n]*': \S[^\n]*$"):
            read(file, "numbers")
