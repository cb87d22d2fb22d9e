"""Safetensors files: written whole, and read only if every tensor is as expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kvtq_hw.contract.errors import UserError
from kvtq_hw.contract.files import write_bytes

__all__ = ["Expected", "read_metadata", "read_tensors", "write_tensors"]


@dataclass(frozen=True)
class Expected:
    """Declares dtype, shape and range of a tensor in a file.

    dtype : dtype of the tensor
    shape : sizes, or names of sizes; equal names mean equal sizes in all tensors of the file
    low, high : range of every element; None for any finite number
    """

    dtype: torch.dtype
    shape: tuple[int | str, ...]
    low: int | None = None
    high: int | None = None


def read_metadata(path: Path, what: str) -> dict[str, str]:
    """Return the metadata strings in a file's header.

    Raises
    ------
    UserError
        When the file cannot be read or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise _failure(path, what, error) from None


def read_tensors(path: Path, what: str, expected: Mapping[str, Expected]) -> dict[str, Tensor]:
    """Return the tensors of a file, which must have exactly the expected tensors.

    Raises
    ------
    UserError
        When the file cannot be read, a tensor is missing or unexpected, a dtype or shape differs,
        or an element is out of range.
    """
    place = f"{what} {str(path)!r}"
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(expected):
                wrong = min(names ^ set(expected))
                problem = "missing" if wrong in expected else "no tensor of such a file"
                raise UserError(f"{place}: {wrong[:80]}: {problem}")
            found: dict[str, Tensor] = {}
            sizes: dict[str, int] = {}
            for name, one in expected.items():
                _check_shape(f"{place}: {name}", file.get_slice(name).get_shape(), one, sizes)
                found[name] = file.get_tensor(name)
                _check_elements(f"{place}: {name}", found[name], one)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:
        # the last three errors come from dtypes that PyTorch does not have
        raise _failure(path, what, error) from None
    return found


def write_tensors(
    path: Path, what: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all; raise `UserError` on failure."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))
    write_bytes(path, data, what)


def _check_shape(place: str, shape: list[int], expected: Expected, sizes: dict[str, int]) -> None:
    """Compare a shape with the expected one, and record the sizes of its names."""
    fits = len(shape) == len(expected.shape)
    for size, wanted in zip(shape, expected.shape, strict=False):
        number = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        fits = fits and size == number
    if not fits or 0 in shape:
        wanted = ", ".join(
            f"{item} = {sizes[item]}" if item in sizes else str(item) for item in expected.shape
        )
        raise UserError(f"{place}: has shape {shape}; must be [{wanted}], none of them zero")


def _check_elements(place: str, tensor: Tensor, expected: Expected) -> None:
    if tensor.dtype != expected.dtype:
        raise UserError(f"{place}: elements are {tensor.dtype}; must be {expected.dtype}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{place}: holds an element that is not finite")
    low, high = expected.low, expected.high
    if low is None or high is None:
        return
    least, most = int(tensor.min()), int(tensor.max())
    if least < low or most > high:
        raise UserError(f"{place}: elements are {least}..{most}; must be in {low}..{high}")


def _failure(path: Path, what: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return UserError(f"{what} {str(path)!r}: {reason or type(error).__name__}")
