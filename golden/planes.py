"""Vectors as ternary planes: the unpacked contents of the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Planes"]


@dataclass(frozen=True)
class Planes:
    """T vectors per batch entry, each with up to P planes of D digits, grouped into runs.

    A vector is the sum over its runs of ``scale * sum_c 3**c * plane_c``. The unit plane (c = 0) of
    a run is stored first. Absent planes are all zero with ``unit`` false and come last, so vectors
    with different numbers of planes share one tensor.

    A digit is a trit. Where each run of a vector is `merged` into one "plane", the digits are the
    sums ``sum_c 3**c * plane_c``, up to 121 in magnitude. In an integer cache format the digits are
    the integers themselves.

    Attributes
    ----------
    digits : int8 [..., T, P, D]; trits in {-1, 0, +1}, or integers
    unit : bool [..., T, P]; true where the plane opens a run, as plane 0 always does
    fraction, exponent : int64 [..., T, P]; the run's scale, meaningful where `unit` is true
    """

    digits: Tensor
    unit: Tensor
    fraction: Tensor
    exponent: Tensor

    def __post_init__(self) -> None:
        for name in ("unit", "fraction", "exponent"):
            shape = getattr(self, name).shape
            if shape != self.digits.shape[:-1]:
                raise ValueError(
                    f"{name} has shape {tuple(shape)}, digits {tuple(self.digits.shape)} need "
                    f"{tuple(self.digits.shape[:-1])}"
                )

    @property
    def tokens(self) -> int:
        """Number of vectors T along the token axis."""
        return self.digits.shape[-3]

    def run_index(self) -> Tensor:
        """Return the index of each plane's run within its vector, int64 [..., T, P]."""
        return self.unit.long().cumsum(-1) - 1

    def run_weight(self) -> Tensor:
        """Return the weight 3**c of each plane within its run, int64 [..., T, P]."""
        position = torch.arange(self.unit.shape[-1], device=self.unit.device).expand(
            self.unit.shape
        )
        start = torch.where(self.unit, position, 0).cummax(-1).values
        return 3 ** (position - start)

    def merged(self) -> Planes:
        """Return the same vectors with one "plane" per run, of integers ``sum_c 3**c * plane_c``.

        Sums over planes are linear, so the engine computes the same results from fewer planes.
        """
        if bool(self.unit.all()):
            return self
        run = self.run_index()
        runs = torch.arange(int(run.max()) + 1, device=run.device)
        member = run[..., None] == runs  # [..., T, P, runs]
        opens = member & self.unit[..., None]
        # |code| <= 121, sums of at most five terms: exact in float32
        weights = (member * self.run_weight()[..., None]).float()
        return Planes(
            (weights.mT @ self.digits.float()).to(torch.int8),
            opens.any(-2),
            (opens * self.fraction[..., None]).sum(-2),
            (opens * self.exponent[..., None]).sum(-2),
        )

    @staticmethod
    def join(parts: Sequence[Planes]) -> Planes:
        """Concatenate the vectors of several parts, adding absent planes where needed."""
        depth = max(part.unit.shape[-1] for part in parts)

        def padded(x: Tensor, trailing: int) -> Tensor:
            axis = -1 - trailing
            return pad(x, (0, 0) * trailing + (0, depth - x.shape[axis]))

        return Planes(
            torch.cat([padded(part.digits, 1) for part in parts], -3),
            torch.cat([padded(part.unit, 0) for part in parts], -2),
            torch.cat([padded(part.fraction, 0) for part in parts], -2),
            torch.cat([padded(part.exponent, 0) for part in parts], -2),
        )

    def map_tokens(self, function: Callable[[Tensor, int], Tensor]) -> Planes:
        """Apply ``function(tensor, token_axis)``, such as slicing or padding, to each tensor."""
        return Planes(
            function(self.digits, -3),
            function(self.unit, -2),
            function(self.fraction, -2),
            function(self.exponent, -2),
        )
