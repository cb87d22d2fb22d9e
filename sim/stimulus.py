"""Random and corner data for the benches, as numpy arrays and as payloads."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["random_trits", "trit_payloads"]


def random_trits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ternary digits, int8, whose share of zeros differs along the first axis."""
    density = rng.choice([0.0, 0.1, 0.5, 2 / 3, 1.0], size=(shape[0], *[1] * (len(shape) - 1)))
    nonzero = rng.random(shape) < density
    return np.where(nonzero, rng.choice([-1, 1], size=shape), 0).astype(np.int8)


def trit_payloads(rng: np.random.Generator, trits: np.ndarray) -> list[Any]:
    """Payloads of ternary digits, nested as the array is; zeros in both of their encodings."""
    negative = (trits < 0) | ((trits == 0) & (rng.random(trits.shape) < 0.25))
    return _nest(trits != 0, negative)


def _nest(nonzero: np.ndarray, negative: np.ndarray) -> Any:
    if nonzero.ndim:
        return [_nest(a, b) for a, b in zip(nonzero, negative, strict=True)]
    return {"nonzero": int(nonzero), "negative": int(negative)}
