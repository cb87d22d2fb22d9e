"""Devices and types of numbers that a model may be loaded on and in, by their names."""

from __future__ import annotations

import torch

from kvtq_hw.contract.errors import UserError, shown

__all__ = ["find_device", "find_dtype"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_device(name: str) -> torch.device:
    """Return the device ``cpu``, ``cuda`` or ``cuda:N``.

    No other device is allowed: calibration and float64 attention need float64, which Apple's GPUs
    lack.

    Raises
    ------
    UserError
        For another name, and for a GPU that PyTorch does not find.
    """
    gpus = torch.cuda.device_count()
    here = f"allowed here are {', '.join(['cpu', *(f'cuda:{n}' for n in range(gpus))])}"
    kind, _, number = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (name != "cuda" and not number.isdecimal()):
        raise UserError(f"device: {shown(name)} is unknown; {here}")
    index = int(number[:9] or 0)
    if index >= gpus:
        raise UserError(f"device: PyTorch {torch.__version__} finds no {shown(name)}; {here}")
    return torch.device("cuda", index)


def find_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name; raise `UserError` for an unknown one."""
    if name not in _DTYPES:
        raise UserError(f"dtype: {shown(name)} is unknown; allowed are {', '.join(_DTYPES)}")
    return _DTYPES[name]
