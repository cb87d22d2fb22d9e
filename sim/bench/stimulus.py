"""Random and corner-case data for the benches, as numpy arrays and as payloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from golden.planes import Planes
from kvtq_hw.contract.config import EngineConfig
from sim.verilated.slices import planes_together

__all__ = [
    "Together",
    "Vectors",
    "element_payloads",
    "plain_trit_payloads",
    "random_elements",
    "random_learned_sinks",
    "random_planes",
    "random_trits",
    "random_vectors",
    "trit_payloads",
]


def random_trits(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw ternary digits, int8; the share of zeros varies along the first axis."""
    density = rng.choice([0.0, 0.1, 0.5, 2 / 3, 1.0], size=(shape[0], *[1] * (len(shape) - 1)))
    nonzero = rng.random(shape) < density
    return np.where(nonzero, rng.choice([-1, 1], size=shape), 0).astype(np.int8)


def random_elements(
    rng: np.random.Generator, config: EngineConfig, shape: tuple[int, ...]
) -> np.ndarray:
    """Draw elements of planes or of integer vectors, int8.

    Integers have all magnitudes and often the smallest or the largest value.
    """
    if config.is_ternary:
        return random_trits(rng, shape)
    low, high = config.element_min, config.element_max
    integers = rng.integers(low, high + 1, shape) >> rng.integers(0, config.integer_bits, shape)
    ends = np.where(rng.random(shape) < 0.5, low, high)
    return np.where(rng.random(shape) < 0.2, ends, integers).astype(np.int8)


def element_payloads(rng: np.random.Generator, config: EngineConfig, elements: np.ndarray) -> Any:
    """Pack trits or integers along the last axis into payloads, nested as the other axes.

    Zero trits occur in both encodings.
    """
    if config.is_ternary:
        return trit_payloads(rng, elements)
    digits = (elements[..., None] >> np.arange(config.integer_bits)) & 1
    bits = digits.astype(np.uint8).reshape(*elements.shape[:-1], -1)
    return _nest(np.packbits(bits, axis=-1, bitorder="little"))


def trit_payloads(rng: np.random.Generator, trits: np.ndarray) -> list[Any]:
    """Pack ternary digits along the last axis into payloads, nested as the other axes.

    Zeros occur in both encodings.
    """
    return _payloads(trits, (trits < 0) | ((trits == 0) & (rng.random(trits.shape) < 0.25)))


def plain_trit_payloads(trits: np.ndarray) -> list[Any]:
    """Pack as `trit_payloads`, with zeros in the encoding that the hardware writes."""
    return _payloads(trits, trits < 0)


def _payloads(trits: np.ndarray, negative: np.ndarray) -> list[Any]:
    bits = np.stack([trits != 0, negative], -1).reshape(*trits.shape[:-1], -1)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    return _nest(packed)


def _nest(packed: np.ndarray) -> Any:
    """Convert rows of bytes, least significant first, to integers."""
    if packed.ndim > 1:
        return [_nest(part) for part in packed]
    return int.from_bytes(packed.tobytes(), "little")


@dataclass(frozen=True)
class Together:
    """T vectors as Q groups of up to P planes of one run, the unit plane first.

    digits : int8 [T, Q, P, D], zero where the run has no further plane
    unit, fraction, exponent : [T, Q]
    first : int64 [T, Q], the index of each group's first plane
    counts : int64 [T], groups per vector; the others of the Q are absent
    """

    digits: NDArray[np.int8]
    unit: NDArray[np.bool_]
    fraction: NDArray[np.int64]
    exponent: NDArray[np.int64]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]

    def elements(self, config: EngineConfig) -> NDArray[np.int8]:
        """Return the elements of each slice, [T, Q, S, P * L]."""
        tokens, most, planes, _ = self.digits.shape
        sliced = self.digits.reshape(tokens, most, planes, config.slices, config.lanes)
        return sliced.swapaxes(2, 3).reshape(tokens, most, config.slices, planes * config.lanes)


@dataclass(frozen=True)
class Vectors:
    """T vectors as planes in numpy arrays, with the number of planes of each vector.

    digits : int8 [T, P, D], trits or integers; unit plane of a run first; planes from `planes[t]`
        on are absent
    unit : bool [T, P]
    fraction, exponent : int64 [T, P]
    planes : int64 [T]
    """

    digits: NDArray[np.int8]
    unit: NDArray[np.bool_]
    fraction: NDArray[np.int64]
    exponent: NDArray[np.int64]
    planes: NDArray[np.int64]

    def golden(self) -> Planes:
        """Return these vectors as `Planes` of the golden model."""
        return Planes(
            torch.from_numpy(self.digits),
            torch.from_numpy(self.unit),
            torch.from_numpy(self.fraction),
            torch.from_numpy(self.exponent),
        )

    @property
    def present(self) -> NDArray[np.bool_]:
        """Return whether each plane is present in its vector, bool [T, P]."""
        return np.arange(self.unit.shape[1]) < self.planes[:, None]

    def together(self, planes: int) -> Together:
        """Group up to `planes` planes of one run, as one slice holds them."""
        digits, unit, first, counts = planes_together(self.digits, self.unit, self.planes, planes)
        fraction, exponent = (
            np.where(unit, np.take_along_axis(field, first, 1), 0)
            for field in (self.fraction, self.exponent)
        )
        return Together(digits, unit, fraction, exponent, first, counts)

    @property
    def largest_exponent(self) -> int:
        """Return the largest exponent of a scale."""
        return int(self.exponent[self.unit].max())


def random_planes(
    rng: np.random.Generator, config: EngineConfig, count: int, kind: str = "mixed"
) -> NDArray[np.int64]:
    """Draw numbers of planes for `count` vectors: the "fewest", the "most", or "mixed"."""
    low, high = {
        "fewest": (1, 1),
        "most": (config.max_planes, config.max_planes),
        "mixed": (1, config.max_planes),
    }[kind]
    return rng.integers(low, high + 1, count)


def random_learned_sinks(rng: np.random.Generator, config: EngineConfig) -> NDArray[np.int64]:
    """Draw learned sinks: maxima and weights, int64 [2, G], in about two heads of three.

    Maxima have all magnitudes; a head without a learned sink has the weight 0.
    """
    group, one = config.query_group, 1 << config.weight_bits
    maximum = rng.integers(-config.ceiling_max, config.ceiling_max + 1, group)
    maximum >>= rng.integers(0, config.maximum_bits, group)
    weight = rng.integers(one // 2, one + 1, group)
    return np.stack([maximum, np.where(rng.random(group) < 2 / 3, weight, 0)])


def random_vectors(
    rng: np.random.Generator,
    config: EngineConfig,
    planes: ArrayLike,
    *,
    code: str = "any",
    exponents: tuple[int, int] | None = None,
) -> Vectors:
    """Draw random vectors.

    Parameters
    ----------
    planes : int [T], number of planes per vector
    code : "balanced" (one run), "residual" (runs of one plane) or "any" (runs of any lengths)
    exponents : smallest and largest exponent of a scale; the whole range if None
    """
    counts = np.asarray(planes, np.int64)
    shape = (len(counts), config.max_planes)
    present = np.arange(config.max_planes) < counts[:, None]
    digits = random_elements(rng, config, (*shape, config.head_dim))
    digits *= present[..., None].astype(np.int8)
    opens = {
        "balanced": np.zeros(shape, bool),
        "residual": np.ones(shape, bool),
        "any": rng.random(shape) < 0.4,
    }[code]
    opens[:, 0] = True
    opens &= present
    low, high = exponents or (0, (1 << config.scale_exponent_bits) - 1)
    fraction = rng.integers(1 << config.scale_fraction_bits, size=shape)
    exponent = rng.integers(low, high + 1, size=shape)
    return Vectors(
        digits, opens, np.where(opens, fraction, 0), np.where(opens, exponent, 0), counts
    )
